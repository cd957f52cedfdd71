"""What running jobs have taken already: by Ray's reservations and placement groups, once that is settled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated import World, cluster, gpus, job

from seatrial.store.job import Need, Spec
from seatrial.submission.order import Room
from seatrial.submission.placed import LAG_S, Sight, kept, placed, reserved, surely
from seatrial.submission.rayjobs import Group, RayJob

COMMAND = Spec("cd /x && exec python eval.py", "cd /x && exec python eval.py")
RUNS = RayJob("RUNNING", job_id="02000000")


def test_a_command_is_reserved_what_it_asked_for_and_a_recipe_nothing() -> None:
    assert reserved(job("a", spec=COMMAND, need=Need(1, 2.0, 1.0))) == Room(2, 1)
    assert reserved(job("a", need=gpus(1))) == Room()


@pytest.mark.parametrize("module", ["train", "pretrain", "tune"])
def test_our_own_jobs_are_known_by_their_module_where_their_recipe_is_not_seen(module: str) -> None:
    line = f"python -m seatrial_jobs.{module} /elsewhere/r.yaml"
    assert reserved(job("a", spec=Spec(line, line), need=gpus(1))) == Room()


def test_several_workers_of_a_command_take_their_room_themselves() -> None:
    many = job("a", spec=COMMAND, need=gpus(2))
    assert reserved(many) == Room()
    groups = [Group("g", "02000000", Room(2, 2))]
    assert placed([many], {"a": RUNS}, groups) == {"a": Room(2, 2)}


def test_a_command_holds_its_room_once_it_runs_and_a_driver_what_its_groups_hold() -> None:
    command, recipe = job("c", spec=COMMAND, need=gpus(1)), job("r", need=gpus(4))
    ray = {"c": replace(RUNS, job_id=""), "r": RUNS}
    assert placed([command, recipe], ray, []) == {"c": Room(1, 1), "r": Room()}
    groups = [Group("a", "02000000", Room(3, 3)), Group("b", "03000000", Room(8, 8))]
    groups.append(Group("c", "02000000", Room(1, 1)))
    assert placed([command, recipe], ray, groups)["r"] == Room(4, 4)
    assert placed([command], {"c": RayJob("PENDING")}, []) == {}


def test_what_was_taken_just_now_is_not_in_the_report_of_what_is_used() -> None:
    empty, full = Sight(0.0, {"a": Room()}), Sight(5.0, {"a": Room(4, 4)})
    assert surely([full], 5.0 + LAG_S - 1) == {}, "nothing was seen before"
    assert surely([empty, full], LAG_S) == {"a": Room()}
    again = Sight(5.0 + LAG_S, {"a": Room(3, 4), "b": Room(1, 0)})
    assert surely([empty, full, again], again.at) == {"a": Room(3, 4), "b": Room()}


def test_what_has_gone_is_not_held_and_a_clock_that_was_ahead_counts_for_nothing() -> None:
    sights = [Sight(0.0, {"a": Room(4, 4)}), Sight(LAG_S, {})]
    assert surely(sights, LAG_S) == {}
    assert surely([Sight(1e6, {"a": Room(4, 4)})], 20.0) == {}


def test_sights_are_kept_for_as_long_as_they_are_looked_at() -> None:
    sights = [Sight(float(at), {}) for at in range(40)]
    assert [sight.at for sight in kept(sights, 39.0)] == [float(at) for at in range(29, 40)]


def test_a_second_job_is_not_started_into_the_room_that_the_first_will_take(world: World) -> None:
    """Serve holds 4 of 8 GPUs, and the first job's workers come half a minute after their driver."""
    world.ray.nodes = cluster((64.0, 8.0))
    world.ray.known["serve"] = world.now
    world.ray.takes = lambda ray_id: 1e6 if ray_id == "serve" else 120.0
    needs = {"serve": gpus(4), "b": gpus(4)}
    world.ray.needs = lambda ray_id: needs.get(ray_id, gpus(0 if world.now < 1030 else 4))
    world.add("a", need=gpus(4))
    world.add("b", need=gpus(4))
    world.tick(times=119)
    assert (world.state("a"), world.state("b")) == ("running", "queued")
    world.tick(times=5)
    assert (world.state("a"), world.state("b")) == ("succeeded", "running")


def test_what_a_command_asks_for_is_reserved_in_ray(world: World) -> None:
    world.ray.nodes = cluster((8.0, 2.0))
    world.add("c", spec=COMMAND, need=Need(1, 2.0, 1.0))
    world.add("r", need=gpus(1))
    world.tick()
    assert world.ray.reserved == {"c": Room(2, 1), "r": Room()}
