"""Room that killed drivers left behind in the cluster is given back."""

from __future__ import annotations

from dataclasses import replace

from simulated import World, cluster

from seatrial.submission.order import Room
from seatrial.submission.rayjobs import Group, RayJob
from seatrial.submission.sweeping import EVERY_S, LEFT_S, left_behind

RUNS = RayJob("RUNNING", job_id="02000000")


def test_what_is_left_behind_is_what_a_driver_that_ended_holds_and_was_not_meant_to_outlive_it() -> None:
    ended = RayJob("FAILED", ended_at=100.0, job_id="02000000")
    ray = {"a": ended, "b": replace(RUNS, job_id="03000000"), "04000000": replace(ended, job_id="04000000")}
    groups = [
        Group("stays", "02000000", Room(1, 0), outlives=True),
        Group("left", "02000000", Room(1, 0)),
        Group("used", "03000000", Room(1, 0)),
        Group("of nobody's submission", "04000000", Room(1, 0)),
        Group("of a driver that Ray does not list", "05000000", Room(1, 0)),
    ]
    assert left_behind(groups, ray, 100.0 + LEFT_S - 1) == ()
    assert left_behind(groups, ray, 100.0 + LEFT_S) == ("left", "of nobody's submission")


def test_room_that_is_left_behind_is_given_back_by_a_job_of_its_own_and_again_if_that_did_not_help(
    world: World,
) -> None:
    world.ray.nodes = cluster((4.0, 0.0))
    world.ray.ends = lambda ray_id: RayJob("FAILED" if ray_id == "killed" else "SUCCEEDED", job_id=ray_id)
    world.ray.takes = lambda ray_id: 1e6 if ray_id == "runs" else 60.0
    world.ray.known["killed"] = world.now - 60
    world.ray.leaked = [Group("0a1b2c3d4e5f60718293", "killed", Room(4, 0))]
    world.add("runs")
    world.tick(times=int(LEFT_S))
    assert world.ray.submissions == ["runs"]
    world.tick(times=2)
    [sweep] = [each for each in world.ray.submissions if each.startswith("seatrial-sweep-0a1b2c3d4e5f6071-")]
    assert world.ray.commands[sweep] == "python -m seatrial_jobs.sweep"
    assert world.ray.reserved[sweep] == Room()
    world.tick(times=int(EVERY_S))
    assert len(world.ray.submissions) == 3
    world.ray.leaked.clear()
    world.tick(times=int(EVERY_S))
    assert len(world.ray.submissions) == 3


def test_room_that_is_left_behind_keeps_no_node_where_nobody_waits(world: World) -> None:
    world.ray.ends = lambda ray_id: RayJob("FAILED", job_id=ray_id)
    world.ray.known["killed"] = world.now - 60 - LEFT_S
    world.ray.leaked = [Group("0a1b2c3d4e5f60718293", "killed", Room(4, 0))]
    world.tick()
    assert [world.ray.commands[each] for each in world.ray.submissions] == ["python -m seatrial_jobs.sweep"]
