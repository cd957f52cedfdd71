"""What a part of the stack is: a command, its environment, its log, and the question whether it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seatrial.monitoring.probe import Probe


@dataclass(frozen=True)
class Child:
    """One part of the stack before it is started."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    log: Path
    probes: tuple[Probe, ...]
    url: str
    """The address that people are shown."""
