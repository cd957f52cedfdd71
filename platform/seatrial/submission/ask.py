"""Put a job into the queue, or find the one that does the same work already."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from seatrial.config.recipe import Recipe
from seatrial.config.tune import TuneRecipe
from seatrial.errors import UserError
from seatrial.store import Store
from seatrial.store.job import ENDED, Job, Need, Spec
from seatrial.submission import screening, watch
from seatrial.submission.cron import Cron
from seatrial.submission.submit import entrypoint_of

DIGITS = 10
LARGEST_SCRIPT = 2**20
"""Bytes of a script: larger files are programs and data."""
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Wishes:
    """What the person asks for besides the work itself."""

    team: str
    priority: int = 0
    after: tuple[str, ...] = ()
    retries: int = 1
    time_limit_s: float | None = None
    cron: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """The job that does the work. ``how`` says what became of the request."""

    job: Job
    how: Literal["queued", "queued again", "attached", "finished before"]


def of_recipe(
    recipe: Recipe,
    module: str,
    file: Path,
    digests: Mapping[str, str],
    wishes: Wishes,
    *,
    folder: Path,
    package: str | None,
    force: bool,
    now: float,
    name: str | None = None,
) -> Job:
    """The job that runs a recipe; ``digests`` are the plan's, of code, configuration and data. It is called
    ``name`` where that is given.

    Raises:
        UserError: a recipe outside of the folder that travels, or something that looks like a secret.
    """
    commands = [
        entrypoint_of(module, file, folder=folder, upload=package is not None, force=forced)
        for forced in (force, False)
    ]
    metadata = {"seatrial.recipe": file.name, "seatrial.job": recipe.name, "seatrial.team": wishes.team}
    screening.require_none(commands[0], wishes.env, metadata, screening.texts(recipe.model_dump(mode="json")))
    resources = recipe.resources
    least, most = _trials_at_a_time(recipe)
    need = Need(
        workers=least * resources.min_workers,
        cpus=resources.cpus_per_worker,
        gpus=1.0 if resources.device == "gpu" else 0.0,
        most=most * resources.max_workers,
        is_auto=resources.device == "auto",
    )
    spec = Spec(commands[0], commands[1], dict(wishes.env), metadata, package, str(file))
    work = [module, dict(digests), package, dict(wishes.env)]
    return _job(name or recipe.name, work, spec, need, wishes, now)


def of_command(
    name: str,
    command: Sequence[str],
    need: Need,
    wishes: Wishes,
    *,
    folder: Path,
    package: str | None,
    now: float,
) -> Job:
    """The job that runs any command in the folder.

    Raises:
        UserError: something that looks like a secret.
    """
    line = shlex.join(
        [sys.executable if command[0] == "python" and package is None else command[0], *command[1:]]
    )
    entrypoint = line if package is not None else f"cd {shlex.quote(str(folder.absolute()))} && exec {line}"
    metadata = {"seatrial.job": name, "seatrial.team": wishes.team}
    screening.require_none(entrypoint, wishes.env, metadata)
    spec = Spec(entrypoint, entrypoint, dict(wishes.env), metadata, package)
    script = "" if package is not None else _script(command, folder)
    return _job(name, [entrypoint, package, dict(wishes.env), script], spec, need, wishes, now)


def _script(command: Sequence[str], folder: Path) -> str:
    """Digest of the first file that a command names, which is its script: a changed one is other work."""
    for word in command:
        path = folder / word
        try:
            if path.is_file() and path.stat().st_size <= LARGEST_SCRIPT:
                return hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, ValueError):  # a word that can be no path, or a file that is not ours to read
            continue
    return ""


def place(store: Store, wanted: Job, *, force: bool) -> Placed:
    """Queue the job, unless one with the same digest is queued, runs or has succeeded.

    One that failed or was stopped is queued again, as its next attempt and with the new wishes. ``force``
    queues another one whatever there is.

    Raises:
        UserError: it comes after a job that is not there, a schedule, or itself.
    """
    wanted = replace(wanted, after=tuple(_before(store, start) for start in wanted.after))
    while True:
        # The jobs of a schedule's times do the schedule's work, and are none.
        is_schedule = wanted.cron is not None
        same = [job for job in store.jobs_of_digest(wanted.digest) if (job.cron is not None) == is_schedule]
        if same and not force:
            if (joined := _join(store, same, wanted)) is not None:
                return joined
            continue  # somebody else has queued it again
        job = replace(wanted, id=f"{wanted.id}-f{len(same)}") if same else wanted
        if store.add_job(job):
            return Placed(job, "queued")


def _join(store: Store, same: Sequence[Job], wanted: Job) -> Placed | None:
    """What the request comes to; None where the job went on just now."""
    going = [job for job in same if job.state not in ENDED]
    if going:
        return Placed(going[0], "attached")
    done = [job for job in same if job.state == "succeeded"]
    if done:
        return Placed(done[0], "finished before")
    last = same[0]
    _require_no_circle(store, last.id, wanted.after)
    if not store.queue_job_again(replace(wanted, id=last.id), ready_at=wanted.ready_at):
        return None
    return Placed(store.job(last.id) or last, "queued again")


def again(store: Store, job: Job, *, now: float) -> bool:
    """Queue an ended job once more as ``job`` says, or a schedule for its next time; whether it had ended."""
    ready_at = now if job.cron is None else Cron.parse(job.cron).after(now)
    return store.queue_job_again(job, ready_at=ready_at)


def _before(store: Store, start: str) -> str:
    """The id of the job that is meant by the beginning of it.

    Raises:
        UserError: there is none, or several, or a schedule.
    """
    found = watch.find(store, start, field="--after")
    if found.cron is not None:
        raise UserError(f"--after: {start}: is a schedule, which never ends: give one of its jobs")
    return found.id


def _require_no_circle(store: Store, job_id: str, after: Sequence[str]) -> None:
    """A job that is queued again may be one that others wait for."""
    left, seen = list(after), set[str]()
    while left:
        other = left.pop()
        if other == job_id:
            raise UserError(f"--after: {after[0]}: comes after this job, {job_id}: leave it out")
        found = None if other in seen else store.job(other)
        seen.add(other)
        if found is not None and found.state == "queued":
            left += found.after


def _job(name: str, work: object, spec: Spec, need: Need, wishes: Wishes, now: float) -> Job:
    for option, given in (("--name", name), ("--team", wishes.team)):
        if not NAME.fullmatch(given):  # they end up in URLs, file names and database keys
            raise UserError(f"{option}: {given[:80]!r}: give up to 63 of a-z, 0-9 and -, not - at an end")
    first = now
    if wishes.cron is not None:
        first = Cron.parse(wishes.cron).after(now)
        work = [work, wishes.cron]
    digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
    return Job(
        id=f"{name}-{digest[:DIGITS]}",
        digest=digest,
        name=name,
        team=wishes.team,
        priority=wishes.priority,
        spec=spec,
        need=need,
        submitted_at=now,
        ready_at=first,
        state="queued" if wishes.cron is None else "scheduled",
        after=wishes.after,
        retries=wishes.retries,
        time_limit_s=wishes.time_limit_s,
        cron=wishes.cron,
    )


def _trials_at_a_time(recipe: Recipe) -> tuple[int, int]:
    """Those that a search must have room for, and those that it takes; 1 for every other job."""
    if not isinstance(recipe, TuneRecipe):
        return 1, 1
    return recipe.search.least_at_a_time, recipe.search.most_at_a_time
