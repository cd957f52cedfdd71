"""Jobs of the queue, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from seatrial.store import Store
from seatrial.store.job import Attempt, Cause, Job, Need, Spec


def job(job_id: str = "a", **values) -> Job:
    spec = Spec("run", "run again", {"A": "1"}, {"seatrial.job": "x"}, "p", "r.yaml")
    given = {"digest": "d", "name": "x", "team": "t", "priority": 3, "submitted_at": 1.0, "ready_at": 2.0}
    return Job(id=job_id, spec=spec, need=Need(2, 1.5, 0.5, is_auto=True), **{**given, **values})


def test_a_job_comes_back_as_it_was_written(store: Store) -> None:
    whole = job(
        message="room",
        after=("b", "c"),
        retries=4,
        failures=1,
        attempt=2,
        time_limit_s=60.0,
        cron="* * * * *",
        wants_stop=True,
        passed_at=5.0,
        ended_at=6.0,
        exit_code=-9,
        cause=Cause("killed", "its driver was killed", "again", True),
        result={"run_id": "r", "version": "models:/x/1"},
    )
    assert store.add_job(whole)
    assert store.job("a") == whole
    assert store.job("none") is None


def test_an_id_is_taken_once(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(lambda n: store.add_job(job(name=f"x{n}")), range(8)))
    assert sum(added) == 1


def test_a_change_of_what_has_changed_meanwhile_is_left_out(store: Store) -> None:
    first = job()
    store.add_job(first)
    assert store.change_job(first, replace(first, state="running"))
    assert not store.change_job(first, replace(first, state="failed"))
    assert store.job("a") == replace(first, state="running")


def test_a_persons_wish_to_stop_survives_the_dispatchers_writes(store: Store) -> None:
    first = job()
    store.add_job(first)
    assert store.ask_job_stop("a")
    store.begin_attempt(first, replace(first, state="running"), Attempt("a", 0, "t", 2.0, 10.0))
    found = store.job("a")
    assert found is not None
    assert (found.state, found.wants_stop) == ("running", True)


def test_an_attempt_is_noted_once_and_settled_with_its_job(store: Store) -> None:
    first = job()
    store.add_job(first)
    running, attempt = replace(first, state="running"), Attempt("a", 0, "t", 2.0, 10.0)
    for _ in range(2):
        assert store.begin_attempt(first, running, attempt)
    assert store.attempts("a") == [attempt]
    over = replace(running, state="succeeded", ended_at=20.0, exit_code=0)
    ended = replace(attempt, ended_at=20.0, status="SUCCEEDED")
    store.settle_attempt(running, over, ended)
    store.settle_attempt(running, replace(over, state="failed"), replace(ended, status="FAILED"))
    assert (store.job("a"), store.attempts("a")) == (over, [ended])


def test_attempts_are_read_from_a_window_and_as_long_as_they_run(store: Store) -> None:
    store.add_job(job())
    for number, (start, end) in enumerate([(0.0, 5.0), (6.0, 15.0), (20.0, None)]):
        attempt = Attempt("a", number, "t", 1.0, start, end, "RUNNING" if end is None else "FAILED")
        store.begin_attempt(job(), job(), attempt)
    assert sorted(each.number for each in store.attempts_since(10.0)) == [1, 2]
    assert store.attempts("a")[1].gpu_hours(since=10.0, now=99.0) == 5.0 / 3600


def test_ended_jobs_are_queued_again_and_others_are_not(store: Store) -> None:
    store.add_job(job())
    assert not store.queue_job_again(job(), ready_at=9.0)
    cause = Cause("failed", "x", "y")
    over = job(state="failed", cause=cause, exit_code=1, ended_at=5.0, failures=1, is_accounted=True)
    store.change_job(job(), over)
    assert store.queue_job_again(replace(over, need=Need(1), priority=5), ready_at=9.0)
    found = store.job("a")
    assert found is not None
    assert (found.state, found.attempt, found.failures, found.cause, found.ended_at) == (
        "queued",
        1,
        0,
        None,
        None,
    )
    assert not found.is_accounted
    assert (found.need, found.priority, found.ready_at) == (Need(1), 5, 9.0)
    assert not store.queue_job_again(over, ready_at=9.0), "it waits already"


def test_an_ended_schedule_waits_for_its_time_again(store: Store) -> None:
    ended = job(state="stopped", cron="0 3 * * *", wants_stop=True)
    store.add_job(ended)
    assert store.queue_job_again(ended, ready_at=10_800.0)
    found = store.job("a")
    assert found is not None
    assert (found.state, found.ready_at, found.wants_stop) == ("scheduled", 10_800.0, False)


def test_an_attempt_of_a_job_that_ended_meanwhile_is_not_noted(store: Store) -> None:
    first = job()
    store.add_job(first)
    store.change_job(first, replace(first, state="stopped"))
    assert not store.begin_attempt(first, replace(first, state="running"), Attempt("a", 0, "t", 2.0, 10.0))
    assert store.attempts("a") == []


def test_what_waits_is_noted_together_and_only_while_it_waits(store: Store) -> None:
    jobs = [job(f"j{n}") for n in range(5)]
    for each in jobs:
        store.add_job(each)
    store.change_job(jobs[0], replace(jobs[0], state="running"))
    store.note_jobs([replace(each, message=f"room {each.id}", passed_at=7.0) for each in jobs])
    assert [store.job(f"j{n}").message for n in range(3)] == ["", "room j1", "room j2"]  # type: ignore[union-attr]


def test_lists_show_what_goes_on_first_and_then_the_latest_that_ended(store: Store) -> None:
    for n in range(6):
        store.add_job(
            job(f"j{n}", submitted_at=float(n), state="succeeded" if n > 1 else "queued", team="ab"[n % 2])
        )
    assert [each.id for each in store.latest_jobs(limit=2)] == ["j1", "j0", "j5", "j4"]
    assert [each.id for each in store.latest_jobs(team="a", limit=9)] == ["j0", "j4", "j2"]
    assert store.job_states(["j0", "j5", "none"]) == {"j0": "queued", "j5": "succeeded"}


def test_the_beginning_of_an_id_is_taken_as_it_is(store: Store) -> None:
    for name in ("lora_1-a", "loraX1-a"):
        store.add_job(job(name))
    assert [each.id for each in store.jobs_like("lora_1")] == ["lora_1-a"]
    assert store.jobs_like("%") == []


def test_the_dispatcher_sees_what_is_open_or_not_accounted(store: Store) -> None:
    for name, state, done in (
        ("a", "queued", False),
        ("b", "failed", False),
        ("c", "failed", True),
        ("d", "scheduled", False),
    ):
        store.add_job(job(name, state=state, is_accounted=done))
    assert [each.id for each in store.unsettled_jobs()] == ["a", "b", "d"]


def test_folders_are_kept_while_a_job_needs_them(store: Store) -> None:
    store.add_package("p", b"\x00zip", now=1.0)
    store.add_package("p", b"other", now=5.0)
    store.add_package("q", b"q", now=1.0)
    assert store.package("p") == b"\x00zip"
    store.forget_packages(before=5.0, kept=["q"])
    assert store.package("p") == b"\x00zip", "it was just kept again"
    store.forget_packages(before=6.0, kept=["p"])
    assert (store.package("p"), store.package("q")) == (b"\x00zip", None)
    store.forget_packages(before=6.0, kept=[])
    assert store.package("p") is None
