"""The queue's part of the door to the database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine

from seatrial.store import jobs
from seatrial.store.database import reading, writing
from seatrial.store.job import Attempt, Job


class JobStore:
    """Jobs of the queue; see :class:`seatrial.store.Store` for what every method raises."""

    engine: Engine

    def add_job(self, job: Job) -> bool:
        """Insert the job unless its id is taken; whether it was inserted."""
        with writing(self.engine) as connection:
            return jobs.add(connection, job)

    def change_job(self, before: Job, after: Job) -> bool:
        """Replace the job if it still is in ``before``'s state and attempt; whether it was."""
        with writing(self.engine) as connection:
            return jobs.change(connection, before, after)

    def note_jobs(self, changed: Sequence[Job]) -> None:
        """Keep what queued jobs wait for, and since when others pass them; all in one transaction."""
        with writing(self.engine) as connection:
            jobs.note(connection, changed)

    def ask_job_stop(self, job_id: str) -> bool:
        """Ask for the job's end; whether it had not ended yet."""
        with writing(self.engine) as connection:
            return jobs.ask_stop(connection, job_id)

    def queue_job_again(self, wanted: Job, *, ready_at: float) -> bool:
        """Queue an ended job as its next attempt, with the wishes of ``wanted``; whether it had ended."""
        with writing(self.engine) as connection:
            return jobs.again(connection, wanted, ready_at=ready_at)

    def begin_attempt(self, before: Job, after: Job, attempt: Attempt) -> bool:
        """Note that the attempt runs; whether it is the job's, which may have ended meanwhile."""
        with writing(self.engine) as connection:
            return jobs.begin(connection, before, after, attempt)

    def settle_attempt(self, before: Job, after: Job, attempt: Attempt) -> None:
        """Note how the attempt ended and what becomes of the job, in one transaction."""
        with writing(self.engine) as connection:
            jobs.settle(connection, before, after, attempt)

    def job(self, job_id: str) -> Job | None:
        """The job with this id."""
        with reading(self.engine) as connection:
            return jobs.read(connection, job_id)

    def jobs_like(self, start: str) -> list[Job]:
        """Up to 20 jobs whose id begins so, the newest first."""
        with reading(self.engine) as connection:
            return jobs.like(connection, start)

    def jobs_of_digest(self, digest: str) -> list[Job]:
        """Every submission of the same work, the newest first."""
        with reading(self.engine) as connection:
            return jobs.of_digest(connection, digest)

    def latest_jobs(self, *, team: str | None = None, limit: int = 50) -> list[Job]:
        """All that go on, and the latest ``limit`` of those that ended; the newest first."""
        with reading(self.engine) as connection:
            return jobs.latest(connection, team=team, limit=limit)

    def unsettled_jobs(self) -> list[Job]:
        """Those that the dispatcher has something to do for, the oldest first."""
        with reading(self.engine) as connection:
            return jobs.unsettled(connection)

    def job_states(self, ids: Sequence[str]) -> dict[str, str]:
        """Job id → state, of those that are there."""
        with reading(self.engine) as connection:
            return jobs.states(connection, ids)

    def attempts(self, job_id: str) -> list[Attempt]:
        """Every attempt of the job by number."""
        with reading(self.engine) as connection:
            return jobs.attempts_of(connection, job_id)

    def attempts_of_run(self, run_id: str) -> list[Attempt]:
        """Every attempt of the jobs that work in this MLflow run: one with another gate goes on in it."""
        with reading(self.engine) as connection:
            return jobs.attempts_of_run(connection, run_id)

    def attempts_since(self, since: float) -> list[Attempt]:
        """Attempts that run, or ended after ``since``."""
        with reading(self.engine) as connection:
            return jobs.attempts_since(connection, since)

    def add_package(self, digest: str, body: bytes, *, now: float) -> None:
        """Keep a folder, as a zip file, until its job has run; kept again it is as new as ``now``."""
        with writing(self.engine) as connection:
            jobs.add_package(connection, digest, body, now=now)

    def package(self, digest: str) -> bytes | None:
        """The zip file with this digest."""
        with reading(self.engine) as connection:
            return jobs.package(connection, digest)

    def forget_packages(self, *, before: float, kept: Sequence[str]) -> None:
        """Delete the folders added earlier than ``before`` whose digest is not ``kept``."""
        with writing(self.engine) as connection:
            jobs.forget_packages(connection, before=before, kept=kept)
