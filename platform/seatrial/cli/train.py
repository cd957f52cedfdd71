"""`seatrial train`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli.output import is_terminal, pairs, say
from seatrial.cli.progress import PlainFollower, TerminalFollower
from seatrial.cli.where import addresses
from seatrial.submission import plan as planning
from seatrial.submission.follow import follow, may_be_tried_again, require_success
from seatrial.submission.recipes import load_recipe
from seatrial.submission.submit import connect, is_same_machine, make_job, submit


def command(
    recipe: Annotated[
        Path,
        typer.Argument(help="Recipe (YAML) of a fine-tuning job or of a base model.", show_default=False),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Train from nothing, whatever is left of this very job.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit and return; do not follow.")] = False,
    retries: Annotated[
        int,
        typer.Option(min=0, help="Submit again when the driver was killed; the job resumes where it was."),
    ] = 1,
    upload: Annotated[
        bool | None,
        typer.Option(
            "--upload/--no-upload",
            help="Send the current folder with the job; by default only when the cluster is another machine.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Plan, submit and follow a training job.

    The same job as `ray job submit -- python -m seatrial_jobs.train RECIPE`, with its plan first and a
    progress bar. Ctrl-C stops the following, not the job. Ends with the job's exit code.
    """
    checked, module = load_recipe(recipe)
    found = addresses()
    client = connect(found)
    pairs(planning.rows(planning.make_plan(recipe)))
    sends = (not is_same_machine(found)) if upload is None else upload
    for attempt in range(retries + 1):
        afresh = force and attempt == 0  # the next attempts go on where the first one was cut off
        job = make_job(
            module, recipe, checked.name, folder=Path.cwd(), upload=sends, force=afresh, now=time.time()
        )
        submission_id = submit(client, job)
        say(f"submitted  {submission_id}")
        if detach:
            say(f"follow with: ray job logs -f {submission_id}")
            return
        with TerminalFollower() if is_terminal() else PlainFollower() as follower:
            try:
                ending = follow(client, submission_id, follower.hear)
            except KeyboardInterrupt:
                say(f"detached: {submission_id} goes on")
                say(f"follow again: ray job logs -f {submission_id}   end it: ray job stop {submission_id}")
                raise typer.Exit(130) from None
        if attempt == retries or not may_be_tried_again(ending):
            break
        say(f"{submission_id}: {ending.why}: submitting again")
    require_success(submission_id, ending)
