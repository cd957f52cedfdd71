"""What a replica serves at this moment. One event loop owns it; swaps are single assignments."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from seatrial.config.service import HttpSection
from seatrial_serving.auth import Keys
from seatrial_serving.table import Table


@dataclass(frozen=True)
class Rules:
    """Who may call and how much; ``model_tokens`` is the engine's longest prompt plus answer."""

    http: HttpSection
    keys: Keys
    model_tokens: int
    max_in_flight: int

    @classmethod
    def of(cls, http: HttpSection, *, model_tokens: int, max_in_flight: int) -> Rules:
        """The rules of a service's `http` section."""
        return cls(http, Keys(http), model_tokens, max_in_flight)


MOST_UNITS = 500_000
"""About 60 MB."""


@dataclass
class Memory:
    """unit -> arm of those that were exposed in one trial; a unit keeps the first arm."""

    trial: str
    arms: dict[str, str] = field(default_factory=dict)

    def keep(self, unit: str, arm: str) -> None:
        """Remember a unit, as long as there is room."""
        if len(self.arms) < MOST_UNITS:
            self.arms.setdefault(unit, arm)

    def learn(self, unit: str, arm: str) -> None:
        """Take the store's word: its arm is the first, whatever the hash said here before it was read."""
        if unit in self.arms or len(self.arms) < MOST_UNITS:
            self.arms[unit] = arm


@dataclass
class Live:
    """The table and rules in force, the versions that are ready, and the requests under way."""

    table: Table
    rules: Rules
    ready: dict[str, str | None] = field(default_factory=dict)
    """version -> the Serve application that serves it, None for an adapter in this engine."""
    in_flight: Counter[str] = field(default_factory=Counter)
    """version -> requests under way."""
    sticky: Memory = field(default_factory=lambda: Memory(""))
    """Where the units of the table's trial are, once its weights have changed."""
    admitted: int = 0
    """Requests that hold a place, those that are still being read among them."""
