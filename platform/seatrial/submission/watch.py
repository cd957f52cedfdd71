"""Follow a job of the queue, over all its attempts, to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from seatrial.errors import RetryableError, UserError
from seatrial.store import Store
from seatrial.store.job import ENDED, Job
from seatrial.submission.events import Event
from seatrial.submission.follow import JobFailedError, exit_code_of, follow

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_S = 0.5
PATIENCE_S = 60.0
SILENCE_S = 20.0


class Hearer(Protocol):
    """What shows a job's lines."""

    def hear(self, said: Event | str) -> None:
        """Take what the job says next."""


class Watch:
    """One look at one job. ``open_hearer`` makes what shows an attempt, ``say`` shows other lines."""

    def __init__(
        self,
        store: Store,
        client: JobSubmissionClient,
        open_hearer: Callable[[], AbstractContextManager[Hearer]],
        say: Callable[[str], None],
    ) -> None:
        self._store, self._client = store, client
        self._open, self._say = open_hearer, say
        self._told = ""
        self._heard_at = time.monotonic()

    def to_end(self, job_id: str) -> Job:
        """The job when it has ended, however often it was tried.

        Raises:
            RetryableError: Ray or the controller does not answer any more; the job may go on.
        """
        while True:
            job = read(self._store, job_id)
            if job.state in ENDED:
                return job
            if job.state == "running":
                self._attempt(job)
            else:
                self._wait(job)

    def _wait(self, job: Job) -> None:
        silent_s = time.monotonic() - self._heard_at
        if job.message and job.message != self._told:
            self._tell(job.message)
            self._say(f"waiting    {job.message}")
        elif not self._told and silent_s > SILENCE_S:
            self._tell("nobody")
            self._say(
                "waiting    no controller has looked at the queue yet: see `seatrial status`, and that "
                "the controller uses the same SEATRIAL_STORE_URL"
            )
        time.sleep(POLL_S)

    def _tell(self, message: str) -> None:
        self._told, self._heard_at = message, time.monotonic()

    def _attempt(self, job: Job) -> None:
        self._tell("")
        if job.attempt:
            self._say(f"attempt    {job.ray_id}")
        try:
            with self._open() as hearer:
                ending = follow(self._client, job.ray_id, hearer.hear, recipe=job.spec.recipe)
        except RetryableError:
            if self._goes_on(job):
                raise
            return  # a cluster that started again has lost it, and the queue knows
        ended = time.monotonic()
        while self._goes_on(job):
            if time.monotonic() - ended > PATIENCE_S:
                raise RetryableError(
                    f"{job.ray_id}: has ended ({ending.status}), but no controller has noted "
                    "it: see `seatrial status`"
                )
            time.sleep(POLL_S)

    def _goes_on(self, job: Job) -> bool:
        """Whether the attempt that ``job`` was at runs as far as the queue knows."""
        now = read(self._store, job.id)
        return (now.state, now.attempt) == ("running", job.attempt)


def read(store: Store, job_id: str) -> Job:
    """The job with this id.

    Raises:
        UserError: there is none.
    """
    found = store.job(job_id)
    if found is None:
        raise UserError(f"{job_id}: no such job: see `seatrial jobs list`")
    return found


def find(store: Store, start: str, *, field: str = "JOB") -> Job:
    """The job whose id is this or, alone, begins so. ``field`` is where it was asked for.

    Raises:
        UserError: there is none, or several.
    """
    exact = store.job(start)
    if exact is not None:
        return exact
    found = store.jobs_like(start) if start else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{field}: {start}: no such job: see `seatrial jobs list`")
    raise UserError(
        f"{field}: {start}: several begin so ({', '.join(job.id for job in found[:4])}): give more of it"
    )


def require_success(job: Job) -> None:
    """Nothing, unless the job failed or was stopped.

    Raises:
        JobFailedError: with the cause, the command to run next, and the driver's exit code.
    """
    if job.state == "succeeded":
        return
    why = job.state if job.cause is None else f"{job.cause.text} (next: {job.cause.remedy})"
    raise JobFailedError(job.id, why, exit_code_of(job.exit_code))
