"""What a job says on standard output: a line for people, and one for the program that follows it."""

from __future__ import annotations

import json
import sys

PREFIX = "::seatrial:: "
"""Begins every line that is one JSON object for a follower such as `seatrial train`."""


def emit(event: str, **fields: object) -> None:
    """Write one event as a JSON line behind :data:`PREFIX`."""
    _write(PREFIX + json.dumps({"event": event, **fields}, separators=(",", ":")))


def say(text: str) -> None:
    """Write one line for people."""
    _write(text)


def complain(text: str) -> None:
    """Write an error for people, on standard error."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def _write(line: str) -> None:
    # One write for each line, so that lines of several threads do not mix.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
