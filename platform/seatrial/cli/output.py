"""How the command line prints: tables for people at a terminal, plain lines for everything else."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def say(text: str = "") -> None:
    """One line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table at a terminal; elsewhere one line for each row, its cells separated by tabs."""
    if not is_terminal():
        for row in rows:
            say("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    Console().print(made)


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """`name  value` lines with the values under each other."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")
