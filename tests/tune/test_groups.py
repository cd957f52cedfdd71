"""Room in the cluster that workers leave behind when what started them is killed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from job_processes import Cluster, until

from seatrial_jobs.workers.groups import unused

DRIVER = """
import sys, time
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from seatrial_jobs.workers import groups

@ray.remote(num_cpus=1)
class Worker:
    def ready(self): return True

@ray.remote(num_cpus=0)
class Starter:
    def start(self):
        group = placement_group([{"CPU": 1.0}])
        ray.get(group.ready())
        where = PlacementGroupSchedulingStrategy(group)
        self.worker = Worker.options(scheduling_strategy=where).remote()
        return ray.get(self.worker.ready.remote())

def free(): return ray.available_resources().get("CPU", 0.0)

def until_free(wanted):
    end = time.monotonic() + 60
    while free() != wanted:
        assert time.monotonic() < end, (free(), wanted)
        time.sleep(0.1)

ray.init(logging_level="error", log_to_driver=False)
whole = free()
killed, kept = Starter.remote(), Starter.remote()
ray.get([killed.start.remote(), kept.start.remote()])
ray.kill(killed)
time.sleep(3)
assert free() == whole - 2, "Ray keeps the room of workers whose starter was killed"
with groups.swept(idle_s=2.0):
    until_free(whole - 1)
    time.sleep(4)
    assert free() == whole - 1, "what is in use stays"
assert ray.get(kept.start.remote()), "and goes on"
groups.leave()
ray.shutdown()
ray.init(logging_level="error", log_to_driver=False)
until_free(whole)
"""


def test_a_group_is_unused_when_all_of_it_is_free() -> None:
    groups = {"a1": [{"CPU": 1.0}, {"CPU": 1.0}], "b2": [{"CPU": 1.0, "GPU": 1.0}], "c3": [{"memory": 1.0}]}
    free = {"CPU": 3.0, "CPU_group_a1": 2.0, "CPU_group_0_a1": 1.0, "CPU_group_b2": 1.0}
    assert unused(groups, free) == {"a1"}
    assert unused(groups, {**free, "GPU_group_b2": 1.0, "CPU_group_a1": 1.0}) == {"b2"}


@pytest.mark.slow
def test_what_a_killed_starter_of_workers_held_is_given_back_and_no_more(cluster: Cluster) -> None:
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER], env=cluster.environment, capture_output=True, text=True, timeout=180
    )
    assert driver.returncode == 0, driver.stderr
    until(lambda: not cluster.workers(), timeout_s=30)
