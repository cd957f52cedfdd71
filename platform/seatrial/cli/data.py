"""`seatrial data`"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from seatrial.errors import UserError

# Name → module that is run with the output path.
BUILDERS = {"stdlib-docs": "seatrial_jobs.data.stdlib_docs"}


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="What to build: `stdlib-docs`, prompt and response pairs from Python's own documentation.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="File to write; held-out pairs go to OUT.heldout.jsonl, plain text to OUT.text.jsonl.",
            show_default=False,
        ),
    ],
) -> None:
    """Build a data set."""
    if name not in BUILDERS:
        raise UserError(f"data: {name}: unknown: give one of {', '.join(BUILDERS)}")
    done = subprocess.run([sys.executable, "-m", BUILDERS[name], str(out)], check=False)
    raise typer.Exit(done.returncode)
