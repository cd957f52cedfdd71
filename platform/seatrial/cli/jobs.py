"""`seatrial jobs`: the queue in front of Ray."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli import queueing
from seatrial.cli.output import is_terminal, pairs, say, table
from seatrial.cli.progress import PlainFollower
from seatrial.cli.where import addresses
from seatrial.config.jobs import JobsConfig, read_jobs_config
from seatrial.errors import RetryableError, UserError
from seatrial.monitoring.logs import plain
from seatrial.store.job import ENDED, Attempt, Job, Need, ray_id
from seatrial.submission import ask, controller, watch
from seatrial.submission import plan as planning
from seatrial.submission.accounting import gpu_hours
from seatrial.submission.events import Lines, parse
from seatrial.submission.follow import broken
from seatrial.submission.order import shown
from seatrial.submission.plan import duration
from seatrial.submission.recipes import RecipeCommand, in_command
from seatrial.submission.screening import redact
from seatrial.submission.submit import connect

STOP_TIMEOUT_S = 60.0
COLUMNS = ("job", "state", "team", "prio", "try", "age", "ran", "what")
OF_RECIPE = "1, or as the recipe says"
NARROW = 120  # columns of a terminal in which the last cell would be a ribbon

app = typer.Typer(
    help="Show, follow, stop and retry the jobs of the queue.",
    add_completion=False,
    rich_markup_mode=None,
)
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Its id, or the beginning of it.", show_default=False)
]


@app.command("list")
def list_jobs(
    team: Annotated[str | None, typer.Option(help="Only this team's.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=0, max=100_000, help="Ended jobs that are shown.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Show what waits, what runs, and what has ended lately; the newest first."""
    found = addresses()
    with queueing.opened(found) as store:
        jobs = store.latest_jobs(team=team, limit=limit)
        attempts = {job.id: store.attempts(job.id) for job in jobs}
    if as_json:
        say(json.dumps([_plain(job, attempts[job.id]) for job in jobs], indent=2))
    elif not jobs:
        say("no jobs: `seatrial train RECIPE` submits one")
    else:
        _show_table([_row(job, attempts[job.id], time.time()) for job in jobs])
        if any(job.state == "queued" for job in jobs) and not controller.answers(found):
            say("no controller answers, so nothing starts: see `seatrial status`")


@app.command()
def show(
    job: JobArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show one job: what it waits for or why it failed, its attempts, its run and version, what it used."""
    found = addresses()
    with queueing.opened(found) as store:
        seen = watch.find(store, job)
        attempts = store.attempts(seen.id)
    if as_json:
        say(json.dumps(_plain(seen, attempts), indent=2))
        return
    now = time.time()
    pairs(_lines(seen, attempts, read_jobs_config(found.home), now))
    if attempts:
        say()
        columns = ("attempt", "status", "started", "run time", "GPUs", "cause")
        table(columns, [_attempt_row(attempt, now) for attempt in attempts])


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")] = False,
    attempt: Annotated[
        int | None,
        typer.Option(min=0, help="Number of the attempt; the latest otherwise.", show_default=False),
    ] = None,
) -> None:
    """Print what a job has said. Ctrl-C stops the printing, not the job."""
    found = addresses()
    with queueing.opened(found) as store:
        seen = watch.find(store, job)
        if seen.cron is not None:
            raise UserError(f"JOB: {seen.id}: is a schedule, which says nothing: give one of its jobs")
        if follow and seen.state not in ENDED and attempt is None:
            queueing.conclude(queueing.follow_to_end(store, found, seen.id))
            return
        done = store.attempts(seen.id)
    numbers = [each.number for each in done]
    if not numbers:
        began = "was never started" if seen.state in ENDED else "has not started yet"
        say(f"{seen.id}: {seen.state}, {began}{': ' + seen.message if seen.message else ''}")
        return
    if attempt is not None and attempt not in numbers:
        raise UserError(f"--attempt: {attempt}: {seen.id} has attempts {', '.join(map(str, numbers))}")
    _print_log(ray_id(seen.id, numbers[-1] if attempt is None else attempt))
    if follow:
        queueing.conclude(seen)


@app.command()
def stop(job: JobArgument) -> None:
    """Stop a job, or end a schedule. What it has kept stays: `seatrial jobs retry` goes on from there."""
    found = addresses()
    with queueing.opened(found) as store:
        seen = watch.find(store, job)
        if not store.ask_job_stop(seen.id):
            say(f"{seen.id}: {seen.state} already")
            return
        if not controller.answers(found):
            say(f"{seen.id}: will be stopped as soon as a controller answers: see `seatrial status`")
            return
        end = time.monotonic() + STOP_TIMEOUT_S
        while (now := watch.read(store, seen.id)).state not in ENDED and time.monotonic() < end:
            time.sleep(watch.POLL_S)
    if now.state in ENDED:
        say(f"{now.state:<9}  {now.id}")
    else:
        say(f"stopping   {now.id}: Ray has not ended it yet: see `seatrial jobs show {now.id}`")


@app.command()
def retry(
    job: JobArgument,
    time_limit: queueing.TimeLimitOption = None,
    detach: queueing.DetachOption = False,
) -> None:
    """Queue an ended job again. It goes on from its last checkpoint, in the same MLflow run."""
    found = addresses()
    with queueing.opened(found) as store:
        seen = watch.find(store, job)
        if seen.state == "succeeded":
            raise UserError(f"JOB: {seen.id}: has succeeded: `seatrial train RECIPE --force` submits another")
        limit_s = seen.time_limit_s if time_limit is None else 3600 * time_limit
        if not ask.again(store, replace(seen, time_limit_s=limit_s), now=time.time()):
            raise UserError(f"JOB: {seen.id}: is {seen.state}: `seatrial jobs logs -f {seen.id}` follows it")
        again = watch.read(store, seen.id)
        queueing.tell_again(again)
        if again.cron is not None:
            return
        if detach:
            say(f"follow     seatrial jobs logs -f {again.id}")
            return
        queueing.conclude(queueing.follow_to_end(store, found, again.id))


@app.command()
def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND…", help="What to run.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="Begins the job's id.", show_default="job, or the recipe's name")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that it starts, for its need of room.", show_default=OF_RECIPE),
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(min=0, callback=queueing.finite, help="Logical CPUs of each.", show_default=OF_RECIPE),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0, callback=queueing.finite, help="GPUs of each.", show_default="0, or as the recipe says"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Submit another one of the same.")] = False,
    detach: queueing.DetachOption = False,
    team: queueing.TeamOption = None,
    priority: queueing.PriorityOption = 0,
    after: queueing.AfterOption = None,
    retries: queueing.RetriesOption = 1,
    time_limit: queueing.TimeLimitOption = None,
    cron: queueing.CronOption = None,
    env: queueing.EnvOption = None,
    upload: queueing.UploadOption = None,
) -> None:
    """Put any command into the queue, such as an evaluation after a training job.

    `python -m seatrial_jobs.train RECIPE`, and so for searches and bases, asks for what the recipe says, as
    `seatrial train RECIPE` does.
    """
    found, folder, now = addresses(), Path.cwd(), time.time()
    config = read_jobs_config(found.home)
    if not command[0].strip():
        raise UserError(f"COMMAND: {shlex.join(command)}: give a program first, such as `-- python x.py`")
    wishes = queueing.wishes_of(
        queueing.team_of(team, config),
        priority=priority,
        after=after,
        retries=retries,
        time_limit=time_limit,
        cron=cron,
        env=env,
    )
    travels = queueing.travels(found, upload)
    known = in_command(command, travels=travels)
    digests = None if known is None else _digests(known, config, travels=travels)
    package = queueing.packed(folder, found, upload)
    digest = package.digest if package else None
    if known is None or digests is None:
        need = _need(Need(), workers, cpus, gpus)
        wanted = ask.of_command(name or "job", command, need, wishes, folder=folder, package=digest, now=now)
    else:
        force = force or known.force
        wanted = ask.of_recipe(
            known.recipe, known.module, known.file, digests, wishes,
            folder=folder, package=digest, force=force, now=now, name=name,
        )  # fmt: skip
        wanted = replace(wanted, need=_need(wanted.need, workers, cpus, gpus))
    queueing.send(found, wanted, package, force=force, detach=detach)


def _digests(known: RecipeCommand, config: JobsConfig, *, travels: bool) -> Mapping[str, str]:
    """What tells a recipe's work from another's; where the folder travels, its data may not be here."""
    if travels:
        return {"config": hashlib.sha256(known.recipe.model_dump_json().encode()).hexdigest()}
    return planning.digests(planning.make_plan(known.file, gpu_tflops=config.gpu_tflops))


def _need(need: Need, workers: int | None, cpus: float | None, gpus: float | None) -> Need:
    """The need with what is given by hand in its place."""
    if workers is not None:
        need = replace(need, workers=workers, most=None)
    if cpus is not None:
        need = replace(need, cpus=cpus)
    return need if gpus is None else replace(need, gpus=gpus, is_auto=False)


def _print_log(attempt: str) -> None:
    client, follower = connect(addresses()), PlainFollower()
    try:
        text = str(client.get_job_logs(attempt))
    except broken() as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise RetryableError(f"{attempt}: Ray has no log of it, or does not answer ({why})") from error
    for line in Lines.of(text):
        said = parse(line)
        follower.hear(redact(plain(said)) if isinstance(said, str) else said)


def _show_table(rows: Sequence[tuple[str, ...]]) -> None:
    """A narrow terminal gets what each job waits for, made or failed of below the table."""
    if not is_terminal() or shutil.get_terminal_size().columns >= NARROW:
        table(COLUMNS, rows)
        return
    table(COLUMNS[:-1], [row[:-1] for row in rows])
    say()
    for row in rows:
        if row[-1] != "-":
            say(f"{row[0]}: {row[-1]}")


def _row(job: Job, attempts: Sequence[Attempt], now: float) -> tuple[str, ...]:
    return (
        job.id,
        job.state,
        job.team,
        str(job.priority),
        str(job.attempt + 1),
        _short(now - job.submitted_at),
        _short(_ran_s(attempts, now)) if attempts else "-",
        _what(job),
    )


def _what(job: Job) -> str:
    """What it waits for, what it made, or why it failed, in one line."""
    if job.state == "scheduled":
        return f"{job.cron}, next {queueing.moment(job.ready_at)}"
    if job.wants_stop and job.state not in ENDED:
        return "stopping"
    if job.state == "queued":
        return job.message or "to be looked at"
    if job.cause is not None:
        return f"{job.cause.kind.replace('_', ' ')}: {job.cause.text}"
    return str(job.result.get("version") or "-")


def _ran_s(attempts: Sequence[Attempt], now: float) -> float:
    return sum((now if each.ended_at is None else each.ended_at) - each.started_at for each in attempts)


def _short(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h` or `5 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _lines(job: Job, attempts: Sequence[Attempt], config: JobsConfig, now: float) -> list[tuple[str, str]]:
    lines = [("job", job.id), ("state", f"{job.state}: {job.message}" if job.message else job.state)]
    if job.cause is not None:
        lines += [
            ("cause", f"{job.cause.kind.replace('_', ' ')}: {job.cause.text}"),
            ("next", job.cause.remedy),
        ]
    lines += [
        ("team", f"{job.team}, priority {job.priority}"),
        ("asks for", shown(job.need) + (", 1 GPU each where there are enough" if job.need.is_auto else "")),
        ("retries", f"{job.failures} of {job.retries} used"),
        ("submitted", queueing.moment(job.submitted_at)),
    ]
    if job.cron is not None:
        lines.append(("schedule", f"{job.cron}, next {queueing.moment(job.ready_at)}"))
    if job.after:
        lines.append(("after", ", ".join(job.after)))
    if job.time_limit_s is not None:
        lines.append(("time limit", duration(job.time_limit_s)))
    lines += [(name, str(job.result[name])) for name in ("run", "version") if job.result.get(name)]
    hours = gpu_hours(attempts, now)
    cost = "" if config.gpu_hour_price is None else f", {hours * config.gpu_hour_price:.2f} {config.currency}"
    return [*lines, ("GPU-hours", f"{hours:.2f}{cost}")]


def _attempt_row(attempt: Attempt, now: float) -> tuple[str, ...]:
    return (
        ray_id(attempt.job_id, attempt.number),
        attempt.status.lower(),
        queueing.moment(attempt.started_at),
        duration(_ran_s([attempt], now)),
        f"{attempt.gpus:g}",
        attempt.cause or "-",
    )


def _plain(job: Job, attempts: Sequence[Attempt]) -> dict[str, object]:
    return {**asdict(job), "attempts": [asdict(attempt) for attempt in attempts]}
