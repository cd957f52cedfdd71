"""Jobs, their attempts and the folders that travel with them, as rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, bindparam, delete, or_, select, update

from seatrial.store.job import ENDED, Attempt, Cause, Job, Need, Spec
from seatrial.store.job_tables import job_attempts, job_packages, jobs
from seatrial.store.writer import insert_new

TEXTS = ("spec", "need", "after", "cause", "result")
# A person sets these while the dispatcher decides.
OTHERS = ("id", "wants_stop", "submitted_at")
# And these when they ask for the same work again.
WISHES = ("spec", "need", "team", "priority", "after", "retries", "time_limit_s")


def add(connection: Connection, job: Job) -> bool:
    """Insert the job unless its id is taken; whether it was inserted."""
    return insert_new(connection, jobs, _row(job))


def change(connection: Connection, before: Job, after: Job) -> bool:
    """Replace ``before`` if it still is in that state and attempt; a person's wish to stop stays."""
    is_same = (jobs.c.id == before.id, jobs.c.state == before.state, jobs.c.attempt == before.attempt)
    values = {name: value for name, value in _row(after).items() if name not in OTHERS}
    return connection.execute(update(jobs).where(*is_same).values(values)).rowcount > 0


def note(connection: Connection, jobs_: Sequence[Job]) -> None:
    """Keep what queued jobs wait for, and since when others pass them."""
    statement = (
        update(jobs)
        .where(jobs.c.id == bindparam("job"), jobs.c.state == "queued", jobs.c.attempt == bindparam("number"))
        .values(message=bindparam("said"), passed_at=bindparam("since"))
    )
    rows = [
        {"job": job.id, "number": job.attempt, "said": job.message, "since": job.passed_at} for job in jobs_
    ]
    connection.execute(statement, rows)


def ask_stop(connection: Connection, job_id: str) -> bool:
    """Note that a person wants it ended; whether it had not ended yet."""
    is_going = (jobs.c.id == job_id, jobs.c.state.not_in(ENDED))
    return connection.execute(update(jobs).where(*is_going).values(wants_stop=True)).rowcount > 0


def again(connection: Connection, wanted: Job, *, ready_at: float) -> bool:
    """Queue an ended job as its next attempt, or a schedule again, with the wishes of ``wanted``; whether it
    had ended."""
    is_over = (jobs.c.id == wanted.id, jobs.c.state.in_(ENDED))
    row = _row(wanted)
    values = {
        **{name: row[name] for name in WISHES},
        "state": "queued" if wanted.cron is None else "scheduled",
        "message": "",
        "attempt": jobs.c.attempt + 1,
        "failures": 0,
        "ready_at": ready_at,
        "wants_stop": False,
        "is_accounted": False,
        "ended_at": None,
        "exit_code": None,
        "cause": None,
        "passed_at": None,
    }
    return connection.execute(update(jobs).where(*is_over).values(values)).rowcount > 0


def read(connection: Connection, job_id: str) -> Job | None:
    """The job with this id."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    return None if row is None else _job(row)


def like(connection: Connection, start: str, *, limit: int = 20) -> list[Job]:
    """Jobs whose id begins so, the newest first."""
    begins = jobs.c.id.startswith(start, autoescape=True)
    statement = select(jobs).where(begins).order_by(jobs.c.submitted_at.desc(), jobs.c.id).limit(limit)
    return [_job(row) for row in connection.execute(statement).mappings()]


def of_digest(connection: Connection, digest: str) -> list[Job]:
    """Every submission of the same work, the newest first."""
    statement = select(jobs).where(jobs.c.digest == digest).order_by(jobs.c.submitted_at.desc(), jobs.c.id)
    return [_job(row) for row in connection.execute(statement).mappings()]


def latest(connection: Connection, *, team: str | None = None, limit: int = 50) -> list[Job]:
    """Those that go on and then the latest of the ended ones, the newest first."""
    wanted = select(jobs) if team is None else select(jobs).where(jobs.c.team == team)
    newest = (jobs.c.submitted_at.desc(), jobs.c.id)
    going = wanted.where(jobs.c.state.not_in(ENDED)).order_by(*newest)
    over = wanted.where(jobs.c.state.in_(ENDED)).order_by(*newest).limit(limit)
    return [_job(row) for part in (going, over) for row in connection.execute(part).mappings()]


def unsettled(connection: Connection) -> list[Job]:
    """Those that the dispatcher has something to do for, the oldest first."""
    is_open = or_(jobs.c.state.not_in(ENDED), jobs.c.is_accounted.is_(False))
    statement = select(jobs).where(is_open).order_by(jobs.c.submitted_at, jobs.c.id)
    return [_job(row) for row in connection.execute(statement).mappings()]


def states(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Job id → state, of those that are there."""
    statement = select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids))
    return {row.id: row.state for row in connection.execute(statement)}


def begin(connection: Connection, before: Job, after: Job, attempt: Attempt) -> bool:
    """Note that the attempt runs; noting it again changes nothing. Whether the job's attempt it is: not when
    the job has ended, or gone on to another one, meanwhile."""
    if change(connection, before, after):
        insert_new(connection, job_attempts, asdict(attempt))
        return True
    found = read(connection, before.id)
    return found is not None and (found.state, found.attempt) == ("running", attempt.number)


def settle(connection: Connection, before: Job, after: Job, attempt: Attempt) -> None:
    """Note how the attempt ended and what becomes of the job, together."""
    is_it = (job_attempts.c.job_id == attempt.job_id, job_attempts.c.number == attempt.number)
    if change(connection, before, after):
        connection.execute(update(job_attempts).where(*is_it).values(asdict(attempt)))


def attempts_of(connection: Connection, job_id: str) -> list[Attempt]:
    """Every attempt of the job by number."""
    statement = select(job_attempts).where(job_attempts.c.job_id == job_id).order_by(job_attempts.c.number)
    return [Attempt(**row) for row in connection.execute(statement).mappings()]


def attempts_of_run(connection: Connection, run_id: str) -> list[Attempt]:
    """Every attempt of the jobs that said that they work in this MLflow run."""
    said = jobs.c.result.contains(f'"run_id": {json.dumps(run_id)}', autoescape=True)
    mine = job_attempts.c.job_id.in_(select(jobs.c.id).where(said))
    return [Attempt(**row) for row in connection.execute(select(job_attempts).where(mine)).mappings()]


def attempts_since(connection: Connection, since: float) -> list[Attempt]:
    """Attempts that run, or ended after ``since``."""
    is_recent = or_(job_attempts.c.ended_at.is_(None), job_attempts.c.ended_at > since)
    return [Attempt(**row) for row in connection.execute(select(job_attempts).where(is_recent)).mappings()]


def add_package(connection: Connection, digest: str, body: bytes, *, now: float) -> None:
    """Keep a folder that travels; one that is there stays as it is, and is as new as this."""
    if not insert_new(connection, job_packages, {"digest": digest, "body": body, "at": now}):
        connection.execute(update(job_packages).where(job_packages.c.digest == digest).values(at=now))


def package(connection: Connection, digest: str) -> bytes | None:
    """The zip file with this digest."""
    statement = select(job_packages.c.body).where(job_packages.c.digest == digest)
    return connection.execute(statement).scalar_one_or_none()


def forget_packages(connection: Connection, *, before: float, kept: Sequence[str]) -> None:
    """Delete the folders that were added earlier and that no job of ``kept`` digests needs."""
    is_old = (job_packages.c.at < before, job_packages.c.digest.not_in(kept))
    connection.execute(delete(job_packages).where(*is_old))


def _row(job: Job) -> dict[str, Any]:
    values = asdict(job)
    for name in TEXTS:
        if values[name] is not None:
            values[name] = json.dumps(values[name], sort_keys=True)
    return values


def _job(row: Any) -> Job:
    values = {field.name: row[field.name] for field in fields(Job)}
    parsed: dict[str, Any] = {name: json.loads(row[name] or "null") for name in TEXTS}
    return Job(
        **{
            **values,
            "spec": Spec(**parsed["spec"]),
            "need": Need(**parsed["need"]),
            "after": tuple(parsed["after"]),
            "cause": None if parsed["cause"] is None else Cause(**parsed["cause"]),
            "result": parsed["result"],
        }
    )
