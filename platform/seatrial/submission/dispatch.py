"""What the dispatcher does next. Pure: jobs, Ray's view of them, the cluster and the time in, actions out."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from seatrial.config.jobs import JobsConfig
from seatrial.config.recipe import DEVICE
from seatrial.store.job import ENDED, Attempt, Cause, Job
from seatrial.submission.causes import Finish, Next, diagnose, made
from seatrial.submission.cron import Cron
from seatrial.submission.order import Cluster, Room, needs, next_jobs
from seatrial.submission.rayjobs import RayJob
from seatrial.submission.sweeping import Sweep

LONGEST_BACKOFF_S = 600.0
ACCOUNT_FOR_S = 3600.0
GRACE_S = 15.0
"""Seconds in which Ray may not list an attempt yet that it has taken."""
UNHEARD = ("lost_node", "killed")
"""Kinds of ends that may take the log with them, and so what the driver had begun."""
RAY_ID = re.compile(r"(.+?)(?:-r(\d+))?")
"""An attempt's id: its job's, and its number unless it is the first."""


@dataclass(frozen=True)
class View:
    """Everything that a decision looks at."""

    jobs: Sequence[Job]
    attempts: Sequence[Attempt]
    """Those that run, and those that ended in the quota's window."""
    states: Mapping[str, str]
    """State of every job that another one of ``jobs`` comes after, or that Ray runs an attempt of."""
    ray: Mapping[str, RayJob]
    cluster: Cluster
    config: JobsConfig
    now: float
    hopeless: Mapping[str, float] = field(default_factory=dict)
    """Job id → since when the cluster has been seen too small for it."""
    placed: Mapping[str, Room] = field(default_factory=dict)
    """Submission id → what the attempt has of what the cluster shows as used."""
    sweep: Sweep | None = None
    """What is due for room that drivers left behind."""


@dataclass(frozen=True)
class Start:
    """Submit the job's attempt to Ray, and note that it runs."""

    job: Job
    gpus: float


@dataclass(frozen=True)
class Adopt:
    """Ray has the attempt already: somebody stopped between submitting and noting it."""

    job: Job
    gpus: float
    started_at: float


@dataclass(frozen=True)
class Settle:
    """The attempt has ended: find out why, and what becomes of the job."""

    job: Job
    attempt: Attempt
    seen: RayJob


@dataclass(frozen=True)
class StopAttempt:
    """Ask Ray to end an attempt."""

    ray_id: str


@dataclass(frozen=True)
class Remember:
    """Since when the cluster has been too small for jobs, by their ids."""

    hopeless: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """Replace a job's row."""

    before: Job
    after: Job


@dataclass(frozen=True)
class Note:
    """Say what queued jobs wait for."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Fire:
    """A schedule's time has come: queue ``job``, then wait for the next time."""

    schedule: Job
    job: Job | None
    """None while the last one still goes on."""
    after: Job


@dataclass(frozen=True)
class Account:
    """Write what an ended job used to its MLflow run, and end the run that its driver left open."""

    job: Job


Action = Sweep | Start | Adopt | Settle | StopAttempt | Remember | Change | Note | Fire | Account


def decide(view: View) -> list[Action]:
    """What is to be done, in this order. Decided again after any part of it was done, the rest is left."""
    actions: list[Action] = [] if view.sweep is None else [view.sweep]
    actions += [StopAttempt(each) for each in _strays(view)]
    running: list[Job] = []
    waiting: list[Job] = []
    notes: list[Job] = []
    for job in view.jobs:
        if job.state == "running":
            found = _tend(job, view)
            actions += found
            if not any(isinstance(each, Settle) for each in found):
                running.append(job)
        elif job.state == "scheduled":
            actions += _schedule(job, view)
        elif job.state == "queued":
            step = _before_start(job, view)
            if isinstance(step, Adopt):
                running.append(job)
            if step is not None:
                actions.append(step)
            elif (why := _early(job, view)) is not None:
                notes.append(replace(job, message=why))
            else:
                waiting.append(job)
        else:
            actions.append(_account(job, view.now))
    starts, kept = _starts(waiting, running, view)
    known = {job.id: job for job in view.jobs}
    changed = tuple(job for job in notes + kept if job != known[job.id])
    return [*actions, *starts, *([Note(changed)] if changed else [])]


def owners(ray: Mapping[str, RayJob]) -> dict[str, tuple[str, int]]:
    """What Ray runs: submission id → the job whose attempt it would be, and its number."""
    found = {}
    for each, seen in ray.items():
        match = None if seen.has_ended else RAY_ID.fullmatch(each)
        if match is not None:
            found[each] = (match[1], int(match[2] or 0))
    return found


def _strays(view: View) -> list[str]:
    """Attempts that run though their job has ended or gone on: handed over by one who then lost the lease, or
    thought lost and found again."""
    known = {job.id: job for job in view.jobs}
    strays = []
    for each, (job_id, number) in owners(view.ray).items():
        job = known.get(job_id)
        if job is None:
            is_stray = view.states.get(job_id) in ENDED
        else:
            is_stray = number < job.attempt + (job.state in ENDED)
        if is_stray:
            strays.append(each)
    return strays


def _account(job: Job, now: float) -> Action:
    """Write what it used; a run that nobody can write to for an hour is left alone."""
    is_late = job.ended_at is not None and now - job.ended_at > ACCOUNT_FOR_S
    return Change(job, replace(job, is_accounted=True)) if is_late else Account(job)


def settled(
    job: Job,
    attempt: Attempt,
    finish: Finish,
    config: JobsConfig,
    *,
    now: float,
    ended_at: float | None = None,
) -> tuple[Job, Attempt]:
    """Job and attempt after the attempt has ended in this way; ``ended_at`` is Ray's time of it."""
    cause = diagnose(finish, Next.in_queue(job))
    end = now if ended_at is None else ended_at
    ran_s = end - attempt.started_at
    if finish.status == "STOPPED" and job.time_limit_s and not job.wants_stop and ran_s >= job.time_limit_s:
        shown = f"ran for {ran_s / 3600:.2f} hours; its time limit is {job.time_limit_s / 3600:.2f}"
        cause = made("time_limit", shown, Next.in_queue(job))
    if job.result.get("run_id") or (cause and cause.kind in UNHEARD and not finish.lines):
        job = replace(job, result={**job.result, "began": True})
    ended = replace(attempt, ended_at=end, status=finish.status, cause="" if cause is None else cause.text)
    if cause is None:
        return over(job, "succeeded", None, finish.exit_code, now), ended
    if cause.kind == "stopped" or job.wants_stop:
        return over(job, "stopped", cause, finish.exit_code, now), ended
    if cause.is_retryable and job.failures < job.retries:
        return _queued_again(job, cause, config, now), ended
    return over(job, "failed", cause, finish.exit_code, now), ended


def command_of(job: Job) -> str:
    """What the next attempt runs: the command that goes on, once an attempt has begun to do the work.

    One that never came so far must not keep the next from starting from nothing, where that was asked for.
    """
    return job.spec.retry_entrypoint if _has_begun(job) else job.spec.entrypoint


def device(job: Job, gpus: float) -> dict[str, str]:
    """Tells the driver what `device: auto` came to, of which the attempt is taken to use ``gpus``: a cluster
    that grows may have no GPU yet."""
    if not job.need.is_auto:
        return {}
    return {DEVICE: "gpu" if gpus > 0 else "cpu"}


def _has_begun(job: Job) -> bool:
    """Whether an attempt has opened a run, or may have."""
    return bool(job.result.get("began") or job.result.get("run_id"))


def backoff_s(failures: int, config: JobsConfig) -> float:
    """Seconds before the retry that follows the failure of this number, from 1."""
    return float(min(config.backoff_s * 2 ** min(failures - 1, 20), LONGEST_BACKOFF_S))


def _queued_again(job: Job, cause: Cause, config: JobsConfig, now: float) -> Job:
    failures = job.failures + 1
    pause_s = backoff_s(failures, config)
    message = f"retry {failures} of {job.retries} in {pause_s:.0f} s: {cause.text}"
    return replace(
        job,
        state="queued",
        attempt=job.attempt + 1,
        failures=failures,
        ready_at=now + pause_s,
        message=message,
        cause=cause,
        passed_at=None,
    )


def over(job: Job, state: str, cause: Cause | None, exit_code: int | None, now: float) -> Job:
    return replace(
        job,
        state=state,  # type: ignore[arg-type]
        cause=cause,
        exit_code=exit_code,
        ended_at=now,
        message="",
        is_accounted=not _has_begun(job),
    )


def _tend(job: Job, view: View) -> list[Action]:
    """A job that runs: has it ended, must it end?"""
    attempt = next((a for a in view.attempts if (a.job_id, a.number) == (job.id, job.attempt)), None)
    if attempt is None:  # noted as running without its attempt: only ever written together
        return [Change(job, replace(job, state="queued"))]
    seen = view.ray.get(job.ray_id)
    if seen is None:
        is_lost = view.now - attempt.started_at > GRACE_S
        return [Settle(job, attempt, RayJob("LOST"))] if is_lost else []
    if seen.has_ended:
        return [Settle(job, attempt, seen)]
    is_over_time = bool(job.time_limit_s) and view.now - attempt.started_at >= (job.time_limit_s or 0.0)
    return [StopAttempt(job.ray_id)] if job.wants_stop or is_over_time else []


def _before_start(job: Job, view: View) -> Action | None:
    """What is to be done for a queued job besides starting it; None when there is nothing."""
    seen = view.ray.get(job.ray_id)
    if seen is not None:
        need = needs(job.need, view.cluster, view.config)
        return Adopt(job, need.counted_gpus, seen.started_at or view.now)
    if job.wants_stop:
        cause = made("stopped", "was stopped before it started", Next.in_queue(job))
        return Change(job, over(job, "stopped", cause, None, view.now))
    if (failed := _failed_dependency(job, view)) is not None:
        cause = made("dependency", failed, Next.in_queue(job))
        return Change(job, over(job, "failed", cause, None, view.now))
    return None


def _failed_dependency(job: Job, view: View) -> str | None:
    for other in job.after:
        state = view.states.get(other)
        if state is None:
            return f"comes after {other}, which is not there"
        if state in ("failed", "stopped"):
            return f"comes after {other}, which {'was stopped' if state == 'stopped' else 'failed'}"
    return None


def _early(job: Job, view: View) -> str | None:
    """Why the job's time has not come yet."""
    for other in job.after:
        if view.states[other] != "succeeded":
            return f"after {other} ({view.states[other]})"
    # Further off than any pause: the clock was ahead when it was set.
    if view.now < job.ready_at <= view.now + LONGEST_BACKOFF_S:
        return job.message or "its time"
    return None


def _starts(waiting: Sequence[Job], running: Sequence[Job], view: View) -> tuple[list[Action], list[Job]]:
    """Whom to start or to give up, and the others with what they wait for."""
    order = next_jobs(waiting, running, view.cluster, view.attempts, view.config, view.now, view.placed)
    actions: list[Action] = []
    for job in order.start:
        need = needs(job.need, view.cluster, view.config)
        actions.append(Start(job, need.counted_gpus))
    by_id = {job.id: job for job in waiting}
    notes: list[Job] = []
    hopeless = {each: min(view.hopeless.get(each, view.now), view.now) for each in order.impossible}
    if hopeless != view.hopeless:
        actions.append(Remember(hopeless))
    for job_id, why in order.waits.items():
        job = by_id[job_id]
        if job_id in hopeless and view.now - hopeless[job_id] >= view.config.unschedulable_s:
            cause = made("unschedulable", why.removeprefix("unschedulable: "), Next.in_queue(job))
            actions.append(Change(job, over(job, "failed", cause, None, view.now)))
            continue
        passed_at = job.passed_at or (view.now if job_id in order.passed else None)
        notes.append(replace(job, message=why, passed_at=passed_at))
    return actions, notes


def _schedule(job: Job, view: View) -> list[Action]:
    """A schedule: fire for the latest time that has come, once, and wait for the next."""
    if job.wants_stop:
        return [Change(job, replace(over(job, "stopped", None, None, view.now), is_accounted=True))]
    if job.cron is None:
        return []
    cron = Cron.parse(job.cron)
    if job.ready_at > view.now:
        first = cron.after(view.now)
        # Later than the next time: the clock was ahead when it was set.
        return [Change(job, replace(job, ready_at=first))] if job.ready_at > first else []
    at = cron.latest(view.now)
    after = replace(job, ready_at=cron.after(view.now), message="")
    due = _of_schedule(job, at, view.now)
    going = (each for each in view.jobs if each.state in ("queued", "running"))
    # One of this very time was queued by a dispatcher that stopped before it had noted so.
    open_ones = [each.id for each in going if each.digest == job.digest and each.id != due.id]
    if open_ones:
        skipped = f"left out {_stamp(at)}: {open_ones[0]} still goes on"
        return [Fire(job, None, replace(after, message=skipped))]
    return [Fire(job, due, after)]


def _of_schedule(job: Job, at: float, now: float) -> Job:
    """The job of one time of the schedule; its id says which, so that it is queued once."""
    return replace(
        job,
        id=f"{job.id}-{_stamp(at)}",
        state="queued",
        cron=None,
        message="",
        submitted_at=now,
        ready_at=now,
        attempt=0,
        result={},
    )


def _stamp(at: float) -> str:
    return time.strftime("%Y%m%d-%H%M", time.gmtime(at))
