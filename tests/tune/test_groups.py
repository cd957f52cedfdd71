"""Room in the cluster that workers leave behind when what started them is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from job_processes import Cluster, ray_cluster, until

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


KILLED = """
import os, signal, time
import ray
from ray.util.placement_group import placement_group

@ray.remote(num_cpus=0)
class Starter:
    def go_on(self):
        while True:
            placement_group([{"CPU": 0.001}])

ray.init(logging_level="error", log_to_driver=False)
meant = placement_group([{"CPU": 0.1}], lifetime="detached")
ray.get(meant.ready())
starters = [Starter.remote() for _ in range(3)]
ray.get([each.__ray_ready__.remote() for each in starters])
[each.go_on.remote() for each in starters]
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""
LEFT = """
import collections, sys, time
import ray
from ray.util import placement_group_table
from ray.util.placement_group import placement_group
from seatrial_jobs.workers import groups

def present():
    states = collections.Counter(each["state"] for each in placement_group_table().values())
    return states.total() - states["REMOVED"]

ray.init(logging_level="error", log_to_driver=False)
mine = placement_group([{"CPU": 1.0}])
ray.get(mine.ready())
time.sleep(5)
staying = int(sys.argv[1]) + 1  # those that are meant to outlive their job, and mine
left = present() - staying
groups.reclaim()
end = time.monotonic() + 20
while present() > staying and time.monotonic() < end:
    time.sleep(0.1)
assert present() == staying, (present(), staying)
assert ray.get(mine.ready())
print("left behind:", left)
"""


@pytest.mark.slow
@pytest.mark.soak
def test_what_a_killed_driver_left_behind_is_given_back_but_not_what_was_meant_to_stay(
    tmp_path: Path, mlflow_uri: str
) -> None:
    """Ray's own, since a kill at that moment may cost a node room for good (ray#64696 is such a case)."""
    with ray_cluster(tmp_path, mlflow_uri, "groups") as cluster:

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            whole = [sys.executable, *command]
            return subprocess.run(
                whole, env=cluster.environment, capture_output=True, text=True, timeout=120, check=False
            )

        for kills in range(1, 7):
            assert run("-c", KILLED).returncode == -9
            rest = run("-c", LEFT, str(kills))
            assert rest.returncode == 0, rest.stderr
            if "left behind: 0" not in rest.stdout:
                swept = run("-m", "seatrial_jobs.sweep")
                assert swept.stdout.startswith("0 placement groups"), swept.stderr
                return
    pytest.fail("Ray gives all of it back by itself: `groups.reclaim` and the queue's sweep can go")
