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


@dataclass
class Live:
    """The table and rules in force, the versions that are ready, and the requests under way."""

    table: Table
    rules: Rules
    ready: dict[str, str | None] = field(default_factory=dict)
    """version -> the Serve application that serves it, None for an adapter in this engine."""
    in_flight: Counter[str] = field(default_factory=Counter)
    """version -> requests under way."""
    sticky: dict[str, str] = field(default_factory=dict)
    """unit -> arm of those exposed in the table's trial, once its weights have changed."""
    admitted: int = 0
    """Requests that hold a place, those that are still being read among them."""
