"""`seatrial train`"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli import queueing
from seatrial.cli.output import is_terminal, pairs, say
from seatrial.cli.progress import PlainFollower, TerminalFollower
from seatrial.cli.where import addresses
from seatrial.config.addresses import Addresses
from seatrial.config.jobs import JobsConfig, read_jobs_config
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial.errors import UserError
from seatrial.submission import ask, controller, screening
from seatrial.submission import plan as planning
from seatrial.submission.dispatch import UNHEARD, backoff_s
from seatrial.submission.events import Event
from seatrial.submission.follow import Ending, follow, may_be_tried_again, require_success
from seatrial.submission.recipes import load_recipe
from seatrial.submission.submit import connect, make_job, submit


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Recipe (YAML) of a fine-tuning job, a search or a base model.", show_default=False
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Train from nothing, whatever is left of this very job.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and end; nothing is submitted or written.")
    ] = False,
    detach: queueing.DetachOption = False,
    team: queueing.TeamOption = None,
    priority: queueing.PriorityOption = 0,
    after: queueing.AfterOption = None,
    retries: queueing.RetriesOption = 1,
    time_limit: queueing.TimeLimitOption = None,
    cron: queueing.CronOption = None,
    env: queueing.EnvOption = None,
    upload: queueing.UploadOption = None,
    no_queue: Annotated[
        bool, typer.Option("--no-queue", help="Hand it to Ray at once, as without a controller.")
    ] = False,
) -> None:
    """Plan, submit and follow a training job.

    The same job as `ray job submit -- python -m seatrial_jobs.train RECIPE`, with its plan first and a
    progress bar. Where a controller runs, it goes through the queue: the same work is submitted once, waits
    for its turn and for room, and is tried again when its driver or its node was lost. Ctrl-C stops the
    following, not the job. Ends with the job's exit code.
    """
    checked, module = load_recipe(recipe)
    found = addresses()
    config = read_jobs_config(found.home)
    screening.require_none_in(checked)
    if dry_run:
        pairs(planning.rows(planning.make_plan(recipe, gpu_tflops=config.gpu_tflops), config))
        return
    connect(found)
    wishes = queueing.wishes_of(
        queueing.team_of(team, config),
        priority=priority,
        after=after,
        retries=retries,
        time_limit=time_limit,
        cron=cron,
        env=env,
    )
    plan = planning.make_plan(recipe, gpu_tflops=config.gpu_tflops)
    pairs(planning.rows(plan, config))
    if not no_queue and controller.answers(found):
        _queue(checked, module, recipe, plan, wishes, found, upload=upload, force=force, detach=detach)
        return
    _require_plain(wishes, no_queue=no_queue)
    sends = queueing.travels(found, upload)
    _directly(checked.name, module, recipe, found, config, wishes, sends=sends, force=force, detach=detach)


def _queue(
    recipe: TrainRecipe | PretrainRecipe,
    module: str,
    file: Path,
    plan: Mapping[str, object],
    wishes: ask.Wishes,
    found: Addresses,
    *,
    upload: bool | None,
    force: bool,
    detach: bool,
) -> None:
    folder, now = Path.cwd(), time.time()
    package = queueing.packed(folder, found, upload)
    wanted = ask.of_recipe(
        recipe,
        module,
        file,
        planning.digests(plan),
        wishes,
        folder=folder,
        package=package.digest if package else None,
        force=force,
        now=now,
    )
    queueing.send(found, wanted, package, force=force, detach=detach)


def _require_plain(wishes: ask.Wishes, *, no_queue: bool) -> None:
    """Ray alone knows no order, no schedule and no limit.

    Raises:
        UserError: something that the queue does was asked for.
    """
    asked = {"--after": wishes.after, "--cron": wishes.cron, "--time-limit": wishes.time_limit_s}
    for name, value in asked.items():
        if value:
            why = "--no-queue leaves it out" if no_queue else "no controller answers"
            raise UserError(f"{name}: needs the queue, and {why}: run `seatrial up`, or leave it away")


def _directly(
    name: str,
    module: str,
    recipe: Path,
    found: Addresses,
    config: JobsConfig,
    wishes: ask.Wishes,
    *,
    sends: bool,
    force: bool,
    detach: bool,
) -> None:
    """Without a queue: submit through Ray's Jobs API, follow, and submit again what was lost."""
    client = connect(found)
    afresh = force
    for attempt in range(wishes.retries + 1):
        job = make_job(
            module,
            recipe,
            name,
            folder=Path.cwd(),
            upload=sends,
            force=afresh,
            env=wishes.env,
            now=time.time(),
        )
        submission_id = submit(client, job)
        say(f"submitted  {submission_id}")
        if detach:
            say(f"follow with: ray job logs -f {submission_id}")
            return
        with TerminalFollower() if is_terminal() else PlainFollower() as follower:
            hearing = _Hearing(follower.hear)
            try:
                ending = follow(client, submission_id, hearing.hear, recipe=str(recipe))
            except KeyboardInterrupt:
                say(f"detached: {submission_id} goes on")
                say(f"follow again: ray job logs -f {submission_id}   end it: ray job stop {submission_id}")
                raise typer.Exit(130) from None
        if attempt == wishes.retries or not may_be_tried_again(ending):
            break
        afresh = afresh and not hearing.may_have_begun(ending)
        pause_s = backoff_s(attempt + 1, config)
        say(f"{submission_id}: {ending.why}: submitting again in {pause_s:.0f} s")
        time.sleep(pause_s)
    require_success(submission_id, ending)


class _Hearing:
    """Passes an attempt's events and lines on, and notes whether its run was opened."""

    def __init__(self, hear: Callable[[Event | str], None]) -> None:
        self._hear = hear
        self._is_silent = True
        self._has_begun = False

    def hear(self, said: Event | str) -> None:
        """One event or line."""
        self._is_silent = False
        self._has_begun |= isinstance(said, Event) and said.name == "run"
        self._hear(said)

    def may_have_begun(self, ending: Ending) -> bool:
        """Whether the next attempt must go on where this one was cut off, as in the queue."""
        kind = ending.cause.kind if ending.cause else ""
        return self._has_begun or (self._is_silent and kind in UNHEARD)
