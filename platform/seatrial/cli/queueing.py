"""What the verbs that touch the queue share: the store, options, and following to the end."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli.output import is_terminal, say
from seatrial.cli.progress import PlainFollower, TerminalFollower
from seatrial.config.addresses import Addresses
from seatrial.config.jobs import DEFAULT_TEAM, TEAM_VARIABLE, JobsConfig
from seatrial.errors import UserError
from seatrial.store import Store
from seatrial.store.job import Job
from seatrial.submission import watch
from seatrial.submission.ask import Placed, Wishes, place
from seatrial.submission.package import Package, pack
from seatrial.submission.submit import connect, is_same_machine

DETACHED = 130


def finite(value: float | None) -> float | None:
    """A number that is one: the comparisons of a queue have no place for others."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value}: give a finite number")
    return value


TeamOption = Annotated[
    str | None,
    typer.Option(help=f"Team whose quota and share count; otherwise {TEAM_VARIABLE}.", show_default=False),
]
PriorityOption = Annotated[
    int, typer.Option(min=-100, max=100, help="Higher goes first among the jobs of the same team.")
]
AfterOption = Annotated[
    list[str] | None,
    typer.Option(help="Job that must have succeeded first; may be given again.", show_default=False),
]
RetriesOption = Annotated[
    int,
    typer.Option(
        min=0, max=1000, help="Times that it is tried again when its driver, its node or a part was lost."
    ),
]
TimeLimitOption = Annotated[
    float | None,
    typer.Option(
        min=0.001, max=100_000, callback=finite, help="Hours after which it is stopped.", show_default=False
    ),
]
CronOption = Annotated[
    str | None,
    typer.Option(help="Five-field schedule in UTC: queue it each time instead of now.", show_default=False),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE for the job's environment, shown in the dashboard; no secrets.", show_default=False
    ),
]
UploadOption = Annotated[
    bool | None,
    typer.Option(
        "--upload/--no-upload",
        help="Send the current folder with the job; by default only when the cluster is another machine.",
        show_default=False,
    ),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Submit and return; do not follow.")]


@contextmanager
def opened(addresses: Addresses) -> Iterator[Store]:
    """The store, its tables up to date."""
    store = Store(addresses.store_url)
    try:
        store.migrate()
        yield store
    finally:
        store.close()


def wishes_of(
    team: str,
    *,
    priority: int,
    after: list[str] | None,
    retries: int,
    time_limit: float | None,
    cron: str | None,
    env: list[str] | None,
) -> Wishes:
    """What a person asks for by the options above; ``time_limit`` in hours.

    Raises:
        UserError: an `--env` without a name or `=`.
    """
    return Wishes(
        team=team,
        priority=priority,
        after=tuple(after or ()),
        retries=retries,
        time_limit_s=None if time_limit is None else 3600 * time_limit,
        cron=cron,
        env=pairs_of(env),
    )


def packed(folder: Path, found: Addresses, upload: bool | None) -> Package | None:
    """The folder, where it travels: as asked for, else when the cluster is another machine.

    Raises:
        UserError: it is too large, or has a link that leads out of it.
    """
    return pack(folder) if travels(found, upload) else None


def travels(found: Addresses, upload: bool | None) -> bool:
    """Whether the folder is sent with a job."""
    return (not is_same_machine(found)) if upload is None else upload


def team_of(given: str | None, config: JobsConfig) -> str:
    """The team that submits.

    Raises:
        UserError: the operator's file names teams, and not this one.
    """
    team = given or os.environ.get(TEAM_VARIABLE) or DEFAULT_TEAM
    if config.teams and team not in config.teams:
        raise UserError(f"--team: {team}: not in jobs.yaml: give one of {', '.join(sorted(config.teams))}")
    return team


def pairs_of(given: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` texts as a mapping.

    Raises:
        UserError: one without a name or `=`.
    """
    found = {}
    for text in given or []:
        name, is_given, value = text.partition("=")
        if not is_given or not name.isidentifier():
            raise UserError(f"--env: {name}: give NAME=VALUE")
        found[name] = value
    return found


def send(found: Addresses, wanted: Job, package: Package | None, *, force: bool, detach: bool) -> None:
    """Put a job into the queue and follow it to its end.

    Raises:
        JobFailedError: it ended badly.
    """
    now = time.time()
    with opened(found) as store:
        if package is not None:
            store.add_package(package.digest, package.body, now=now)
        placed = place(store, wanted, force=force)
        tell_placed(placed)
        if placed.job.cron is not None:
            say(f"show       seatrial jobs show {placed.job.id}")
            return
        if detach:
            say(f"follow     seatrial jobs logs -f {placed.job.id}")
            return
        conclude(follow_to_end(store, found, placed.job.id))


def tell_placed(placed: Placed) -> None:
    """Say what became of a request."""
    job = placed.job
    if placed.how == "queued" and job.cron is not None:
        say(f"scheduled  {job.id}  next {moment(job.ready_at)}")
    elif placed.how == "queued":
        say(f"queued     {job.id}")
    elif placed.how == "queued again":
        tell_again(job)
    elif placed.how == "attached":
        say(f"attached   {job.id}: the same work is {job.state} already (--force submits another)")
    else:
        say(f"finished   {job.id}: the same work has succeeded before (--force submits another)")


def tell_again(job: Job) -> None:
    """Say that an ended job is queued once more."""
    if job.cron is not None:
        say(f"scheduled  {job.id} again  next {moment(job.ready_at)}")
    else:
        say(f"queued     {job.id} again, as attempt {job.ray_id}")


def moment(at: float) -> str:
    """`2026-11-24 09:30 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def follow_to_end(store: Store, addresses: Addresses, job_id: str) -> Job:
    """Show the job until it has ended. Ctrl-C stops the showing, not the job."""
    looking = watch.Watch(
        store, connect(addresses), TerminalFollower if is_terminal() else PlainFollower, say
    )
    try:
        return looking.to_end(job_id)
    except KeyboardInterrupt:
        say(f"detached   {job_id} goes on")
        say(f"follow     seatrial jobs logs -f {job_id}")
        say(f"end        seatrial jobs stop {job_id}")
        raise typer.Exit(DETACHED) from None


def conclude(job: Job) -> None:
    """Say how it ended.

    Raises:
        JobFailedError: badly.
    """
    watch.require_success(job)
    made = f"  {job.result['version']}" if job.result.get("version") else ""
    say(f"succeeded  {job.id}{made}")
