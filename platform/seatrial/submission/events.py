"""What a job says while it runs: events for programs, lines for people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from seatrial.monitoring.logs import plain

PREFIX = "::seatrial:: "
# What Ray's job manager says in a job's log. That of the entrypoint may come last: it is written out after
# the command was started.
JOB_MANAGER = re.compile(r"INFO job_manager\.py|^Running entrypoint for job ")


@dataclass(frozen=True)
class Event:
    """One `::seatrial::` line: `run`, `plan`, `progress`, `evaluated`, `gate`, `registered`, `done`."""

    name: str
    fields: Mapping[str, object] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """A numeric field, None when it is not there or not finite."""
        value = self.fields.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:  # an integer of hundreds of digits
            return None

    def text(self, name: str) -> str:
        """A field as text that a terminal can show, empty when it is not there."""
        value = self.fields.get(name)
        return "" if value is None else plain(str(value))


def parse(line: str) -> Event | str:
    """The event in the line, wherever Ray's own prefix puts it, or else the line."""
    _, found, payload = line.partition(PREFIX)
    if not found:
        return line
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError):
        return line
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        return line
    name = values.pop("event")
    return Event(name, values)


class Lines:
    """Chunks of text in, whole lines out."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, chunk: str) -> Iterator[str]:
        """The lines that this chunk completes."""
        *whole, self._rest = (self._rest + chunk).split("\n")
        yield from (line.rstrip("\r") for line in whole)

    @classmethod
    def of(cls, text: str) -> Iterator[str]:
        """The lines of a whole text."""
        lines = cls()
        yield from lines.feed(text)
        yield from lines.flush()

    def flush(self) -> Iterator[str]:
        """What is left without a line end."""
        rest, self._rest = self._rest, ""
        if rest:
            yield rest
