"""`seatrial validate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.config.load import load
from seatrial.errors import UserError
from seatrial.submission.recipes import kind_of


def command(
    files: Annotated[
        list[Path], typer.Argument(help="Recipes, service files, jobs.yaml.", show_default=False)
    ],
) -> None:
    """Check recipes and service files without running anything.

    The operator's `jobs.yaml` too. Every bad field of every file is one line: `file:line: field: value: fix`.
    """
    problems = []
    for path in files:
        try:
            load(path, kind_of(path))
            say(f"{path}: fine")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
