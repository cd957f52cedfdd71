"""Who is next: the rule between teams, inside a team, and for jobs that do not fit."""

from __future__ import annotations

import random

import pytest
from simulated import World, cluster, gpus, job

from seatrial.config.jobs import JobsConfig
from seatrial.store.job import Attempt, Need
from seatrial.submission.order import Cluster, Node, Room, needs, next_jobs

NOW = 10_000.0


def started(
    waiting, room: Cluster, running=(), attempts=(), now: float = NOW, placed=None, **config
) -> list[str]:
    made = JobsConfig.model_validate(config)
    return [each.id for each in next_jobs(waiting, running, room, attempts, made, now, placed or {}).start]


def waits(waiting, room: Cluster, running=(), attempts=(), **config) -> dict[str, str]:
    made = JobsConfig.model_validate(config)
    return dict(next_jobs(waiting, running, room, attempts, made, NOW, {}).waits)


def test_inside_a_team_priority_and_then_age_decide() -> None:
    queue = [
        job("old", at=1),
        job("new", at=2),
        job("urgent", at=3, priority=5),
        job("later", at=0, priority=-5),
    ]
    assert started(queue, cluster((8, 0))) == ["urgent", "old", "new", "later"]
    assert started(queue, cluster((2, 0))) == ["urgent", "old"]


def test_what_a_job_may_grow_to_is_no_more_than_the_cluster_has() -> None:
    config = JobsConfig()
    grows = Need(2, 1.0, 1.0, most=12)
    assert needs(grows, cluster((8, 4)), config).counted_gpus == 4.0
    assert needs(grows, cluster((8, 1)), config).counted_gpus == 2.0
    assert needs(Need(2, 1.0, most=12, is_auto=True), cluster((8, 4)), config).counted_gpus == 4.0
    assert needs(Need(2, 1.0, most=12, is_auto=True), cluster((8, 0)), config).counted_gpus == 0.0


def test_a_priority_takes_nothing_from_another_team() -> None:
    loud = [job(f"a{n}", at=n, team="a", priority=100) for n in range(10)]
    quiet = [job(f"b{n}", at=100 + n, team="b") for n in range(10)]
    assert started([*loud, *quiet], cluster((4, 0))) == ["a0", "b0", "a1", "b1"]


def test_shares_are_kept_to() -> None:
    queue = [job(f"{team}{n}", at=n, team=team) for n in range(30) for team in "ab"]
    found = started(queue, cluster((9, 0)), teams={"a": {"share": 2}, "b": {"share": 1}})
    assert sum(each.startswith("a") for each in found) == 6


def test_what_a_team_holds_already_counts() -> None:
    running = [job(f"r{n}", team="a", state="running") for n in range(2)]
    room = Cluster((Node(4, 0, 2, 0),))
    queue = [job("a0", at=1, team="a"), job("b0", at=2, team="b"), job("b1", at=3, team="b")]
    placed = {each.id: Room(1, 0) for each in running}
    assert started(queue, room, running, placed=placed) == ["b0", "b1"]


def test_gpus_and_cpus_are_weighed_by_the_scarcer_one() -> None:
    running = [job("r", team="a", need=gpus(2), state="running")]  # 2 of 4 GPUs, though 2 of 64 CPUs
    room = Cluster((Node(64, 4, 62, 2),))
    queue = [job("a0", at=1, team="a", need=gpus(1)), job("b0", at=2, team="b", need=gpus(2))]
    assert started(queue, room, running, placed={"r": Room(2, 2)}) == ["b0"]


def test_workers_must_fit_on_nodes_not_on_the_sum() -> None:
    room = Cluster((Node(8, 4, 8, 1), Node(8, 4, 8, 1)))
    assert started([job("a", need=gpus(1, each=2))], room) == []
    assert started([job("a", need=gpus(2, each=1))], room) == ["a"]


def test_what_was_claimed_and_not_taken_yet_is_not_given_away() -> None:
    running = [job("r", need=Need(3, 1.0), state="running")]
    assert started([job("a", need=Need(2, 1.0))], cluster((4, 0)), running) == []
    taken = Cluster((Node(4, 0, 1, 0),))
    assert started([job("a", need=Need(1, 1.0))], taken, running, placed={"r": Room(3, 0)}) == ["a"]


def test_where_ray_tells_nothing_of_what_is_used_our_own_claims_are_kept() -> None:
    running = [job("r", need=gpus(4), state="running")]
    silent = Cluster((Node(64, 8, 64, 8),))  # no autoscaler reports what is used
    for placed in ({}, {"r": Room(4, 4)}):
        assert started([job("a", need=gpus(5))], silent, running, placed=placed) == []
        assert started([job("a", need=gpus(4))], silent, running, placed=placed) == ["a"]


def test_what_others_hold_is_not_taken_for_what_our_own_jobs_were_promised() -> None:
    running = [job("r", need=gpus(4), state="running")]
    served = Cluster((Node(64, 8, 60, 4),))  # Serve replicas hold 4 of 8 GPUs
    assert started([job("a", need=gpus(4))], served, running) == []
    both = Cluster((Node(64, 8, 56, 0),))
    assert started([job("a", need=gpus(1))], both, running, placed={"r": Room(4, 4)}) == []
    gone = Cluster((Node(64, 8, 60, 4),))  # the replicas have left, our workers are there
    assert started([job("a", need=gpus(4))], gone, running, placed={"r": Room(4, 4)}) == ["a"]


def test_workers_that_are_in_place_in_part_keep_the_rest_of_their_claim() -> None:
    running = [job("r", need=gpus(4), state="running")]
    room = Cluster((Node(64, 8, 62, 6),))
    half = {"r": Room(2, 2)}
    assert started([job("a", need=gpus(5))], room, running, placed=half) == []
    assert started([job("a", need=gpus(4))], room, running, placed=half) == ["a"]


def test_an_elastic_job_that_grew_gives_no_room_away_twice() -> None:
    grown = job("r", need=Need(1, 1.0, 1.0, most=4), state="running")
    late = job("s", need=gpus(2), state="running")
    room = Cluster((Node(64, 8, 60, 4),))  # the one grew to 4, the other has not come yet
    placed = {"r": Room(4, 4)}
    assert started([job("a", need=gpus(3))], room, [grown, late], placed=placed) == []
    assert started([job("a", need=gpus(2))], room, [grown, late], placed=placed) == ["a"]


def test_the_same_room_is_not_given_twice_in_one_pass() -> None:
    queue = [job(f"j{n}", at=n, need=Need(2, 1.0)) for n in range(5)]
    assert started(queue, cluster((2, 0), (3, 0))) == ["j0", "j1"]


def test_a_small_job_passes_one_that_does_not_fit_until_it_has_waited_too_long() -> None:
    room = Cluster((Node(4, 0, 2, 0),))
    big, small = job("big", at=1, need=Need(4, 1.0)), job("small", at=2)
    order = next_jobs([big, small], [], room, [], JobsConfig(), NOW, {})
    assert [each.id for each in order.start] == ["small"]
    assert order.passed == {"big"}
    late = job("big", at=1, need=Need(4, 1.0), passed_at=NOW - 601)
    order = next_jobs([late, small], [], room, [], JobsConfig(), NOW, {})
    assert order.start == ()
    assert "kept for a job that has waited longer" in order.waits["small"]


def test_what_is_kept_free_is_only_what_that_job_needs() -> None:
    room = Cluster((Node(8, 4, 8, 1),))
    late = job("big", need=Need(1, 0.0, 4.0), passed_at=NOW - 601)
    cpu_only = job("cpu")
    assert started([late, cpu_only], room) == ["cpu"]


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (Need(5, 1.0), "unschedulable: asks for 5 x (1 CPU); the cluster has 4 CPU, 0 GPU (1 node)"),
        (gpus(1), "unschedulable: asks for 1 x (1 CPU, 1 GPU); the cluster has 4 CPU, 0 GPU (1 node)"),
    ],
)
def test_what_can_never_fit_is_said_in_one_line(need: Need, said: str) -> None:
    assert waits([job("a", need=need)], cluster((4, 0)))["a"] == said


def test_one_worker_larger_than_any_node_can_never_fit() -> None:
    assert "unschedulable" in waits([job("a", need=Need(1, 6.0))], cluster((4, 0), (4, 0)))["a"]


def test_a_cluster_that_grows_takes_what_it_can_grow_to() -> None:
    small = cluster((4, 0))
    grows = {"grows_to": {"cpus": 64, "gpus": 8}}
    queue = [job("a", need=gpus(8)), job("b", at=1, need=gpus(8)), job("c", need=gpus(9))]
    assert started(queue, small, **grows) == ["a"]
    found = waits(queue, small, **grows)
    assert found["b"] == "room: asks for 8 x (1 CPU, 1 GPU)"
    assert "as it may grow" in found["c"]


def test_device_auto_takes_gpus_where_there_are_enough() -> None:
    auto = Need(2, 1.0, is_auto=True)
    room = Cluster((Node(8, 2, 8, 1),))  # two GPUs, one of them taken: it would ask for both
    assert started([job("a", need=auto)], room) == []
    assert started([job("a", need=auto)], Cluster((Node(8, 1, 8, 0),))) == ["a"]  # one GPU for two: on CPUs


def test_a_quota_counts_actual_runs_in_its_window() -> None:
    hour, day = 3600.0, 86400.0
    now = 100 * day
    attempts = [
        Attempt(
            "x", 0, "a", 2.0, now - 2 * day, now - 2 * day + hour, "FAILED"
        ),  # 2 GPU-hours, though it failed
        Attempt("y", 0, "a", 4.0, now - 40 * day, now - 40 * day + hour, "SUCCEEDED"),  # too long ago
        Attempt("z", 0, "b", 50.0, now - day, now - day + hour, "SUCCEEDED"),  # another team's
        Attempt("r", 0, "a", 1.0, now - hour),  # runs: 1 so far
    ]
    queue = [job("j", team="a", need=gpus(1))]
    room = cluster((8, 8))
    config = {"teams": {"a": {"gpu_hours": 3.0}, "b": {}}}
    assert started(queue, room, attempts=attempts, now=now, **config) == []
    assert started(queue, room, attempts=attempts, now=now, teams={"a": {"gpu_hours": 3.1}}) == ["j"]
    free = [job("cpu", team="a")]
    assert started(free, room, attempts=attempts, now=now, **config) == ["cpu"], "CPUs have no quota"


def test_time_limits_promise_gpu_hours_so_that_a_quota_is_not_overrun_by_many_at_once() -> None:
    queue = [job(f"j{n}", at=n, team="a", need=gpus(2), time_limit_s=3600.0) for n in range(8)]
    config = {"teams": {"a": {"gpu_hours": 7}}}
    assert started(queue, cluster((64, 64)), **config) == ["j0", "j1", "j2"]
    said = waits(queue, cluster((64, 64)), **config)["j3"]
    assert said == "quota: team a has used or promised 6.0 of 7 GPU-hours in 30 days and may use 2.0"


def test_a_team_that_is_not_in_the_file_is_told() -> None:
    assert waits([job("a", team="x")], cluster((4, 0)), teams={"b": {}})["a"] == (
        "team x: not in jobs.yaml (teams: b)"
    )


def test_no_more_run_at_once_than_the_operator_allows() -> None:
    queue = [job(f"j{n}", at=n) for n in range(4)]
    assert started(queue, cluster((8, 0)), [job("r", state="running")], max_running=3) == ["j0", "j1"]


def test_hundreds_of_jobs_of_three_teams_share_the_cluster_fairly_and_all_of_them_run(world: World) -> None:
    """300 jobs of 1 or 2 GPUs on 16 GPUs, with shares 2 : 1 : 1; a simulated day."""
    chance = random.Random(1)  # noqa: S311
    world.configure(teams={"a": {"share": 2}, "b": {}, "c": {}}, patience_s=600)
    world.ray.nodes = cluster((64, 8), (64, 8))
    needs = {}
    for number in range(300):
        team = "abc"[number % 3]
        need = gpus(chance.choice([1, 1, 2]))
        needs[f"{team}{number}"] = need
        world.add(f"{team}{number}", team=team, need=need, priority=chance.choice([0, 0, 10]))
    world.ray.needs = needs.__getitem__
    world.ray.takes = lambda ray_id: 300.0 + 60.0 * (int(ray_id[1:]) % 20)
    held = {"a": 0.0, "b": 0.0, "c": 0.0}
    while jobs := world.store.unsettled_jobs():
        world.tick(120.0)
        if {each.team for each in jobs if each.state == "queued"} == set(held):
            for each in world.ray.running():
                held[each[0]] += needs[each].workers
    assert len(set(world.ray.submissions)) == len(world.ray.submissions) == 300
    total = sum(held.values())
    shares = {team: part / total for team, part in held.items()}
    assert shares["a"] == pytest.approx(0.5, abs=0.06), shares
    assert shares["b"] == pytest.approx(0.25, abs=0.06), shares


def test_a_large_job_is_not_starved_by_an_endless_stream_of_small_ones(world: World) -> None:
    world.configure(teams={"big": {}, "small": {}}, patience_s=600)
    world.ray.nodes = cluster((8, 0))
    needs = {"huge": Need(8, 1.0)}
    world.ray.needs = lambda ray_id: needs.get(ray_id, Need())
    world.ray.takes = lambda _: 100.0
    for number in range(8):
        world.add(f"s{number}", team="small")
    world.tick()
    world.add("huge", team="big", need=needs["huge"])
    number = 8
    while world.state("huge") == "queued":
        world.add(f"s{number}", team="small")
        number += 1
        world.tick(10.0)
        assert world.now < 1000 + 600 + 300, "it waits for patience_s and for what runs, not longer"
