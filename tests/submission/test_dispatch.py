"""The dispatcher over simulated time: attempts, retries, limits, dependencies, and crashes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from simulated import World, cluster, gpus

from seatrial.errors import ConfigError, RetryableError
from seatrial.store.job import Need, Spec
from seatrial.submission import accounting
from seatrial.submission.dispatch import GRACE_S
from seatrial.submission.dispatcher import LOG_FOR_S
from seatrial.submission.rayjobs import Log, RayJob

AUTO = Need(2, 1.0, is_auto=True)
LOST = RayJob("FAILED", message="Job supervisor actor died", error_type="JOB_SUPERVISOR_ACTOR_DIED")


def test_a_job_runs_once_and_rest_writes_nothing(world: World) -> None:
    world.add("a")
    world.tick()
    assert world.state("a") == "running"
    assert world.ray.commands == {"a": "run a"}
    world.tick(61.0)
    world.tick()
    done = world.job("a")
    assert (done.state, done.exit_code, done.cause) == ("succeeded", 0, None)
    (attempt,) = world.store.attempts("a")
    assert (attempt.started_at, attempt.ended_at, attempt.status) == (1000.0, 1060.0, "SUCCEEDED")
    world.tick(times=5)
    assert world.job("a") == done
    assert world.ray.submissions == ["a"]


def test_what_waits_says_for_what_and_goes_on_when_there_is_room(world: World) -> None:
    world.add("a", need=Need(3, 1.0))
    world.add("b", need=Need(2, 1.0))
    world.ray.needs = {"a": Need(3, 1.0), "b": Need(2, 1.0)}.__getitem__
    world.tick()
    assert (world.state("b"), world.job("b").message) == ("queued", "room: asks for 2 x (1 CPU)")
    world.tick(61.0)
    world.tick(times=2)
    assert world.state("b") == "running"
    assert world.job("b").message == ""


def test_lost_drivers_are_retried_with_growing_pauses_and_only_so_often(world: World) -> None:
    world.configure(backoff_s=10)
    world.ray.ends = lambda _: LOST
    world.ray.takes = lambda _: 5.0
    world.add("a", retries=3)
    while world.state("a") != "failed":
        world.tick()
    assert list(world.ray.known) == ["a", "a-r1", "a-r2", "a-r3"]
    assert world.ray.commands["a-r1"] == "run a again"
    starts = list(world.ray.known.values())
    pauses = [later - earlier - 5.0 for earlier, later in pairwise(starts)]
    assert pauses == [pytest.approx(10 * 2**n, abs=2) for n in range(3)]
    assert [each.status for each in world.store.attempts("a")] == ["FAILED"] * 4
    cause = world.job("a").cause
    assert cause is not None
    assert cause.kind == "lost_node"
    assert cause.remedy.endswith("seatrial jobs retry a")


def test_a_user_error_is_not_retried(world: World) -> None:
    world.ray.ends = lambda _: RayJob("FAILED", exit_code=2)
    world.ray.lines = {"a": ("recipe.yaml:3: run.steps: 0: give more",)}
    world.add("a", retries=5)
    world.tick(61.0, times=3)
    assert world.state("a") == "failed"
    assert world.job("a").exit_code == 2
    assert list(world.ray.known) == ["a"]


def test_a_person_retries_what_has_ended_as_another_attempt(world: World) -> None:
    world.ray.ends = lambda ray_id: RayJob("FAILED", exit_code=1) if ray_id == "a" else RayJob("SUCCEEDED")
    world.add("a")
    world.tick(61.0, times=2)
    assert world.state("a") == "failed"
    assert world.store.queue_job_again(world.job("a"), ready_at=world.now)
    assert not world.store.queue_job_again(world.job("a"), ready_at=world.now), "it is queued already"
    world.tick(61.0, times=2)
    assert world.state("a") == "succeeded"
    assert list(world.ray.known) == ["a", "a-r1"]


FORCED = Spec("run --force", "run")


@pytest.mark.parametrize("kind", ["never started", "refused", "broken environment"])
def test_what_shall_begin_from_nothing_does_so_until_an_attempt_has_begun(world: World, kind: str) -> None:
    world.configure(backoff_s=1)
    if kind == "never started":
        world.add("before", state="failed", is_accounted=True)
        world.add("a", spec=FORCED, after=("before",))
    else:
        world.add("a", spec=FORCED)
        world.ray.refuses = "Ray refused the job: no" if kind == "refused" else ""
        broken = RayJob("FAILED", message="pip failed", error_type="RUNTIME_ENV_SETUP_FAILURE")
        world.ray.ends = lambda ray_id: broken if ray_id == "a" else LOST
    world.tick(61.0, times=3)
    assert world.state("a") == "failed"
    world.ray.refuses = ""
    world.ray.ends = lambda ray_id: broken if ray_id == "a" else LOST
    world.store.queue_job_again(replace(world.job("a"), after=()), ready_at=world.now)
    world.tick(61.0, times=4)
    assert world.ray.commands["a-r1"] == "run --force", "nothing had been done"
    assert world.ray.commands["a-r2"] == "run", "its log went with its node: it may have begun"


def test_hours_of_earlier_attempts_are_accounted_for_when_ray_refuses_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.configure(backoff_s=1)
    world.ray.ends = lambda _: LOST
    monkeypatch.setattr(world.ray, "log", lambda _: Log((), {"run_id": "r", "run": "http://x"}))
    world.add("a")
    world.tick()
    world.ray.refuses = "Ray refused the job: no"
    world.tick(61.0, times=4)
    assert world.state("a") == "failed"
    assert not world.job("a").is_accounted, "its run has still to be told"


def test_a_run_that_two_jobs_worked_in_is_told_the_hours_of_both(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float]] = []
    monkeypatch.setattr(accounting, "write", lambda run, hours, *_, **__: told.append((run, round(hours, 6))))
    monkeypatch.setattr(world.ray, "log", lambda ray_id: Log(("x",), {"run_id": ray_id[:3]}))
    world.ray.nodes = cluster((4.0, 4.0))
    world.ray.takes = {"run-a": 3600.0, "run-b": 1800.0, "ran-c": 900.0}.__getitem__
    for name in ("run-a", "run-b", "ran-c"):
        world.add(name, need=gpus(1))
    world.tick(901.0, times=6)
    assert told == [("ran", 0.25), ("run", 0.5), ("run", 1.5)], "the other one had not ended then"


def test_a_cluster_that_started_again_lost_the_attempt_and_it_is_retried(world: World) -> None:
    world.add("a")
    world.tick()
    world.ray.known.clear()
    world.tick(GRACE_S)
    assert world.state("a") == "running", "it may not be listed yet"
    world.tick(30.0, times=2)
    assert list(world.ray.known) == ["a-r1"]


def test_a_time_limit_stops_it_and_is_not_retried(world: World) -> None:
    world.ray.takes = lambda _: 10_000.0
    world.add("a", time_limit_s=3600.0, retries=3)
    world.tick(100.0, times=40)
    job = world.job("a")
    assert job.state == "failed"
    assert job.cause is not None
    assert job.cause.kind == "time_limit"
    assert job.cause.text.startswith("ran for 1.00 hours") or job.cause.text.startswith("ran for 1.0")
    assert list(world.ray.known) == ["a"]


def test_stopping_ends_what_waits_at_once_and_what_runs_through_ray(world: World) -> None:
    world.ray.nodes = cluster((1.0, 0.0))
    world.add("a")
    world.add("b")
    world.tick()
    for each in "ab":
        assert world.store.ask_job_stop(each)
    world.tick(times=2)
    assert (world.state("a"), world.state("b")) == ("stopped", "stopped")
    assert list(world.ray.stopped) == ["a"]
    assert not world.store.ask_job_stop("a"), "it has ended"


def test_a_dependency_holds_a_job_until_it_has_succeeded(world: World) -> None:
    world.add("train")
    world.add("evaluate", after=("train",))
    world.tick(30.0)
    world.tick(31.0)
    assert world.job("evaluate").message == "after train (running)"
    world.tick(times=2)
    assert world.state("train") == "succeeded"
    world.tick()
    assert world.state("evaluate") == "running"


@pytest.mark.parametrize(("code", "said"), [(1, "which failed"), (143, "which was stopped")])
def test_what_comes_after_a_failure_fails_with_it(world: World, code: int, said: str) -> None:
    world.ray.ends = lambda _: RayJob("FAILED", exit_code=code)
    world.add("train")
    world.add("evaluate", after=("train",))
    world.tick(61.0, times=4)
    job = world.job("evaluate")
    assert job.state == "failed"
    assert job.cause is not None
    assert job.cause.text == f"comes after train, {said}"
    assert list(world.ray.known) == ["train"]


def test_what_can_never_fit_fails_after_a_while_but_not_if_the_cluster_grows(world: World) -> None:
    world.configure(unschedulable_s=300)
    world.add("a", need=gpus(2))
    world.add("b", need=gpus(2))
    world.tick(100.0)
    assert world.job("a").message.startswith("unschedulable: asks for 2 x (1 CPU, 1 GPU)")
    world.ray.nodes = cluster((4.0, 2.0))
    world.tick(100.0)
    assert world.state("a") == "running"
    world.ray.nodes = cluster((4.0, 0.0))
    world.tick(301.0, times=2)
    job = world.job("b")
    assert job.state == "failed"
    assert job.cause is not None
    assert job.cause.kind == "unschedulable"


def test_what_ray_refuses_fails_with_what_ray_says(world: World) -> None:
    world.ray.refuses = "Ray refused the job: bad runtime_env"
    world.add("a")
    world.tick(times=2)
    assert world.state("a") == "failed"
    cause = world.job("a").cause
    assert cause is not None
    assert cause.text == "Ray refused the job: bad runtime_env"


def test_ray_away_is_told_to_those_who_wait_and_changes_nothing_else(world: World) -> None:
    world.add("a")
    world.tick()
    world.add("b")
    world.ray.is_away = True
    for _ in range(3):
        with pytest.raises(RetryableError, match="ray: does not answer"):
            world.tick()
    assert (world.state("a"), world.state("b")) == ("running", "queued")
    assert world.job("b").message == "the queue: ray: does not answer"
    world.ray.is_away = False
    world.tick()
    assert world.state("b") == "running"


def test_a_mistake_in_the_operators_file_is_told_to_those_who_wait(world: World) -> None:
    world.configure(gpu_hour_prise=2)
    world.add("a")
    with pytest.raises(ConfigError):
        world.tick()
    assert "gpu_hour_prise" in world.job("a").message


def test_one_that_stands_by_does_nothing(world: World) -> None:
    world.leads = False
    world.add("a")
    world.tick(times=3)
    assert world.ray.submissions == []


def test_a_node_that_is_away_for_a_moment_fails_nothing_that_has_waited_long(world: World) -> None:
    world.configure(unschedulable_s=300)
    world.ray.nodes = cluster((4.0, 2.0))
    world.ray.needs = lambda ray_id: gpus(1) if ray_id == "waits" else gpus(2)
    world.ray.takes = lambda _: 5000.0
    world.add("holds", need=gpus(2))
    world.tick()
    world.add("waits", need=gpus(1))
    world.tick(1000.0)
    world.ray.needs = lambda _: Need()
    world.ray.nodes = cluster((4.0, 0.0))
    world.tick(200.0)
    assert world.job("waits").message.startswith("unschedulable")
    world.ray.nodes = cluster((4.0, 2.0))
    world.tick(200.0)
    world.ray.nodes = cluster((4.0, 0.0))
    world.tick(200.0)
    assert world.state("waits") == "queued", "its time begins anew"
    world.tick(200.0, times=2)
    assert world.state("waits") == "failed"


def test_one_job_whose_log_ray_cannot_give_keeps_no_other_and_is_settled_without(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("a")
    world.tick(61.0)

    def away(ray_id: str) -> Log:
        raise RetryableError("ray: the node with the log is gone")

    monkeypatch.setattr(world.ray, "log", away)
    world.add("b")
    with pytest.raises(RetryableError, match="the node with the log is gone"):
        world.tick(0.0)
    assert (world.state("a"), world.state("b")) == ("running", "running")
    world.now += LOG_FOR_S
    with pytest.raises(RetryableError):
        world.tick()
    assert world.state("a") == "succeeded"


def test_ray_that_takes_no_job_now_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    take = world.ray.submit

    def refuse(*_arguments: Any) -> None:
        raise RetryableError("ray: takes no job now: no agent yet")

    monkeypatch.setattr(world.ray, "submit", refuse)
    world.add("a")
    with pytest.raises(RetryableError):
        world.tick()
    assert (world.state("a"), world.job("a").message) == (
        "queued",
        "the queue: ray: takes no job now: no agent yet",
    )
    monkeypatch.setattr(world.ray, "submit", take)
    world.tick()
    assert (world.state("a"), world.job("a").message) == ("running", "")


def test_what_is_handed_over_after_another_dispatcher_stopped_it_is_ended_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = world.ray.submit

    def slowly(*arguments: Any) -> None:
        """The lease is lost meanwhile, and the new leader does what a person asks."""
        world.store.ask_job_stop("a")
        queued = world.job("a")
        world.store.change_job(queued, replace(queued, state="stopped", is_accounted=True))
        take(*arguments)

    monkeypatch.setattr(world.ray, "submit", slowly)
    world.add("a")
    world.tick()
    assert (world.state("a"), world.store.attempts("a")) == ("stopped", [])
    assert list(world.ray.stopped) == ["a"]


def test_an_attempt_that_comes_back_after_it_was_given_up_is_ended(world: World) -> None:
    world.ray.takes = lambda _: 1000.0
    world.ray.nodes = cluster((4.0, 0.0))
    world.add("a")
    world.tick()
    hidden = dict(world.ray.known)
    world.ray.known.clear()
    world.tick(GRACE_S + 1, times=3)
    assert list(world.ray.known) == ["a-r1"]
    world.ray.known |= hidden
    world.tick(times=2)
    assert list(world.ray.stopped) == ["a"]
    assert (world.state("a"), world.job("a").attempt) == ("running", 1)


def test_somebody_elses_jobs_on_the_cluster_are_left_alone(world: World) -> None:
    world.ray.known |= {"raysubmit_1": world.now, "a-r7": world.now}
    world.ray.nodes = cluster((9.0, 0.0))
    world.add("b")
    world.tick(times=3)
    assert world.ray.stopped == {}


def test_a_driver_is_told_what_its_device_came_to_and_what_the_queue_counts(world: World) -> None:
    world.configure(grows_to={"cpus": 64, "gpus": 8})
    world.add("grows", need=AUTO, spec=Spec("run", "run", env={"A": "b"}, recipe="r.yaml"))
    world.add("gpu", need=gpus(1))
    world.tick()
    env = {"A": "b", "SEATRIAL_DEVICE": "gpu"}
    assert world.ray.environments == {"grows": {"env_vars": env}, "gpu": {}}
    assert world.store.attempts("grows")[0].gpus == 2.0
    world.configure()
    world.add("here", need=AUTO)
    world.ray.known.clear()
    world.ray.nodes = cluster((8.0, 1.0))
    world.tick()
    assert world.ray.environments["here"] == {"env_vars": {"SEATRIAL_DEVICE": "cpu"}}
