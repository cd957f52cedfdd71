"""The queue's loop: look, decide, act. It keeps nothing that a restart would need.

Ray takes each submission id once, and every attempt has its own, so that a dispatcher that was killed between
handing an attempt over and noting it finds it again, and two of them start nothing twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from pathlib import Path
from typing import Any

from seatrial.config.addresses import Addresses
from seatrial.config.jobs import JobsConfig, read_jobs_config
from seatrial.errors import RetryableError, SeatrialError
from seatrial.store import Store
from seatrial.store.job import Attempt, Job
from seatrial.submission import accounting
from seatrial.submission.causes import Finish, Next, made
from seatrial.submission.dispatch import (
    Account,
    Action,
    Adopt,
    Change,
    Fire,
    Note,
    Remember,
    Settle,
    Start,
    StopAttempt,
    View,
    command_of,
    decide,
    device,
    over,
    owners,
    settled,
)
from seatrial.submission.order import DAY_S, Cluster, Room
from seatrial.submission.placed import Sight, kept, placed, reserved, surely
from seatrial.submission.rayjobs import Log, RayJobs
from seatrial.submission.recipes import SWEEP_MODULE
from seatrial.submission.sweeping import Sweep, due

log = logging.getLogger("seatrial.jobs")

BUSY_S = 0.5
IDLE_S = 1.0
REST_S = 30.0
TIDY_EVERY_S = 600.0
KEEP_PACKAGES_S = 7 * DAY_S
MOST_TROUBLES = 3
"""Actions that fail before a pass is given up: each may have waited for Ray."""
LOG_FOR_S = 120.0
"""Seconds after its end in which an attempt's log is waited for."""


@dataclass(frozen=True)
class Places:
    """Where the dispatcher reads and writes besides the store and Ray."""

    mlflow_uri: str
    home: Path


class Dispatcher:
    """Starts, ends and retries the jobs of one store on one cluster while ``leads`` says so."""

    def __init__(
        self,
        store: Store,
        ray: RayJobs,
        places: Places,
        *,
        leads: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._ray, self._places = store, ray, places
        self._leads, self._clock = leads, clock
        self._said = ""
        self._account_at = 0.0
        self._tidied_at = 0.0
        self._is_migrated = False
        self._hopeless: Mapping[str, float] = {}
        self._sights: tuple[Sight, ...] = ()

    @classmethod
    def of(cls, addresses: Addresses, *, leads: Callable[[], bool]) -> Dispatcher:
        """The dispatcher of the stack that ``addresses`` names."""
        places = Places(addresses.mlflow_uri, addresses.home)
        return cls(Store(addresses.store_url), RayJobs.of(addresses), places, leads=leads)

    def run(self, stop: threading.Event) -> None:
        """Pass after pass until ``stop`` is set; no failure ends it."""
        while not stop.is_set():
            is_busy = False
            try:
                is_busy = self.one_pass()
                self._said = ""
            except Exception as error:  # nothing may end the loop
                self._complain(error)
            stop.wait(BUSY_S if is_busy else IDLE_S)

    def one_pass(self) -> bool:
        """Look, decide and act once; whether jobs wait or run.

        Raises:
            SeatrialError: Ray, the store or `jobs.yaml` stand in the way; waiting jobs say so.
        """
        if not self._is_migrated:
            self._store.migrate()
            self._is_migrated = True
        if not self._leads():
            return False
        jobs = self._store.unsettled_jobs()
        if not jobs:
            self._tidy(jobs)
            return False
        try:
            config = read_jobs_config(self._places.home)
            view = self._look(jobs, config)
        except SeatrialError as error:
            self._tell(jobs, error)
            raise
        if not self._carry_out(decide(view), config):
            return False
        self._tidy(jobs)
        return any(job.state in ("queued", "running") for job in jobs)

    def _carry_out(self, actions: Sequence[Action], config: JobsConfig) -> bool:
        """Act in order; one that fails keeps no other from being done. Whether this dispatcher still leads.

        Raises:
            Exception: what the first one that failed did.
        """
        troubles: list[Exception] = []
        for action in actions:
            if not self._leads():
                return False
            try:
                self._act(action, config)
            except Exception as error:  # raised when the others are done
                troubles.append(error)
                if len(troubles) >= MOST_TROUBLES:
                    break
        if troubles:
            raise troubles[0]
        return True

    def _look(self, jobs: list[Job], config: JobsConfig) -> View:
        now = self._clock()
        attempts = self._store.attempts_since(now - config.window_days * DAY_S)
        is_idle = not any(job.state in ("queued", "running") for job in jobs)
        ray = {} if is_idle else self._ray.jobs()
        groups = [] if is_idle else self._ray.groups()
        cluster = Cluster(()) if is_idle else self._ray.cluster()
        self._sights = kept([*self._sights, Sight(now, placed(jobs, ray, groups))], now)
        others = {other for job in jobs for other in job.after} | {each for each, _ in owners(ray).values()}
        states = self._store.job_states(sorted(others))
        sure = surely(self._sights, now)
        sweep = due(groups, ray, now)
        return View(jobs, attempts, states, ray, cluster, config, now, self._hopeless, sure, sweep)

    @singledispatchmethod
    def _act(self, action: Action, config: JobsConfig) -> None:
        raise TypeError(action)

    @_act.register
    def _(self, action: Start, config: JobsConfig) -> None:
        job, spec = action.job, action.job.spec
        env = {**spec.env, **device(job, action.gpus)}
        runtime_env: dict[str, Any] = {"env_vars": env} if env else {}
        if spec.package is not None:
            body = self._store.package(spec.package)
            if body is None:
                self._refuse(job, "the folder that travels with it is not kept any more: submit it again")
                return
            name = f"_ray_pkg_{spec.package[:32]}.zip"
            self._ray.put_package(name, body)
            runtime_env["working_dir"] = f"gcs://{name}"
        try:
            self._ray.submit(job.ray_id, command_of(job), runtime_env, spec.metadata, reserved(job))
        except RetryableError as error:
            self._tell([job], error)
            raise
        except SeatrialError as error:
            self._refuse(job, str(error))
            return
        if self._begin(job, action.gpus, self._clock()):
            log.info("%s: started", job.ray_id)
        else:  # it ended meanwhile, by another dispatcher's hand
            self._ray.stop(job.ray_id)

    @_act.register
    def _(self, action: Sweep, config: JobsConfig) -> None:
        self._sweep(action)

    @_act.register
    def _(self, action: Adopt, config: JobsConfig) -> None:
        self._begin(action.job, action.gpus, action.started_at)
        log.info("%s: found running", action.job.ray_id)

    @_act.register
    def _(self, action: Settle, config: JobsConfig) -> None:
        job, seen = action.job, action.seen
        said = Log() if seen.status == "LOST" else self._log(job.ray_id, seen.ended_at)
        finish = Finish(seen.status, seen.exit_code, seen.message, seen.error_type, said.lines)
        job = replace(job, result={**job.result, **said.result})
        after, attempt = settled(
            job, action.attempt, finish, config, now=self._clock(), ended_at=seen.ended_at
        )
        self._store.settle_attempt(action.job, after, attempt)
        log.info("%s: %s%s", job.ray_id, after.state, f": {attempt.cause}" if attempt.cause else "")

    @_act.register
    def _(self, action: StopAttempt, config: JobsConfig) -> None:
        self._ray.stop(action.ray_id)

    @_act.register
    def _(self, action: Remember, config: JobsConfig) -> None:
        self._hopeless = action.hopeless

    @_act.register
    def _(self, action: Change, config: JobsConfig) -> None:
        self._store.change_job(action.before, action.after)

    @_act.register
    def _(self, action: Note, config: JobsConfig) -> None:
        self._store.note_jobs(action.jobs)

    @_act.register
    def _(self, action: Fire, config: JobsConfig) -> None:
        if action.job is not None:
            self._store.add_job(action.job)
        self._store.change_job(action.schedule, action.after)

    @_act.register
    def _(self, action: Account, config: JobsConfig) -> None:
        now, job = self._clock(), action.job
        if now < self._account_at:
            return
        try:
            self._write(job, config, now)
        except RetryableError as error:  # MLflow keeps no job from running
            self._account_at = now + REST_S
            self._complain(error)
            return
        except SeatrialError as error:  # such as a run that is gone: later is no better
            self._complain(error)
        self._store.change_job(job, replace(job, is_accounted=True))

    def _write(self, job: Job, config: JobsConfig, now: float) -> None:
        """Tell the job's run what it used, and that it has ended where its driver could not."""
        uri, run_id = self._places.mlflow_uri, job.result.get("run_id")
        if (status := accounting.ending(job)) is not None:
            accounting.end(job, status, uri=uri)
        if run_id:
            hours = accounting.gpu_hours(self._store.attempts_of_run(run_id), now)
            accounting.write(run_id, hours, config, uri=uri)

    def _log(self, ray_id: str, ended_at: float | None) -> Log:
        """The end of an attempt's log; nothing when Ray has not given it for long, as with its node gone."""
        try:
            return self._ray.log(ray_id)
        except RetryableError:
            if ended_at is None or self._clock() - ended_at < LOG_FOR_S:
                raise
            return Log()

    def _begin(self, job: Job, gpus: float, at: float) -> bool:
        """Note that the attempt runs; whether it is still the job's."""
        attempt = Attempt(job.id, job.attempt, job.team, gpus, at)
        after = replace(job, state="running", message="", passed_at=None, cause=None)
        return self._store.begin_attempt(job, after, attempt)

    def _refuse(self, job: Job, why: str) -> None:
        """Ray will not take it, now or later."""
        cause = made("refused", why, Next.in_queue(job))
        self._store.change_job(job, over(job, "failed", cause, None, self._clock()))

    def _tell(self, jobs: list[Job], error: SeatrialError) -> None:
        """Let waiting jobs say what keeps all of them."""
        why = f"the queue: {str(error).splitlines()[0]}"
        told = [replace(job, message=why) for job in jobs if job.state == "queued" and job.message != why]
        if told:
            self._store.note_jobs(told)

    def _complain(self, error: Exception) -> None:
        """Say it once, with its traceback where it is no error on purpose."""
        if str(error) != self._said:
            self._said = str(error)
            log.warning("%s", error, exc_info=None if isinstance(error, SeatrialError) else error)

    def _tidy(self, jobs: list[Job]) -> None:
        now = self._clock()
        if now - self._tidied_at > TIDY_EVERY_S:
            kept = [job.spec.package for job in jobs if job.spec.package]
            self._store.forget_packages(before=now - KEEP_PACKAGES_S, kept=kept)
            self._tidied_at = now
            if not jobs:  # room that nobody waits for may keep a node
                sweep = due(self._ray.groups(), self._ray.jobs(), now)
                if sweep is not None:
                    self._sweep(sweep)

    def _sweep(self, sweep: Sweep) -> None:
        self._ray.submit(sweep.ray_id, f"python -m {SWEEP_MODULE}", {}, {}, Room())
        log.info("%s: drivers that were killed hold room", sweep.ray_id)
