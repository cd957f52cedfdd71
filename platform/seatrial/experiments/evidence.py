"""What is known about a trial's arms at one moment.

Everything is grouped by unit, the thing that was assigned, and by the arm it was assigned to, whichever
version answered in the end (intention to treat).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from seatrial.experiments.sequential import ArmStats


@dataclass(frozen=True)
class ArmEvidence:
    """One arm. ``assigned_units`` counts every unit seen, ``stats`` only units with an answered request.

    ``unanswered`` is the sum, over units, of the share of their requests that the arm's own version did not
    answer: it failed, or another version had to stand in. A client's retries count within their unit.
    """

    name: str
    version: str
    assigned_units: int
    exposed_units: int
    requests: int
    exposures: int
    failures: int
    fallbacks: int
    outcomes: int
    stats: ArmStats
    unanswered: float = 0.0

    @classmethod
    def empty(cls, name: str, version: str) -> ArmEvidence:
        """An arm that nobody has been in yet."""
        return cls(name, version, 0, 0, 0, 0, 0, 0, 0, ArmStats(0, 0.0, 0.0))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ArmEvidence:
        """The inverse of :meth:`Evidence.to_json` for one arm; null totals become NaN."""
        stats = value["stats"]
        totals = {key: math.nan if stats[key] is None else stats[key] for key in ("total", "total_squares")}
        return cls(**{**value, "stats": ArmStats(n=stats["n"], **totals)})


@dataclass(frozen=True)
class Evidence:
    """All arms at ``taken_at``; ``ignored_outcomes`` had a value outside 0..1 where the metric is a share."""

    taken_at: float
    arms: tuple[ArmEvidence, ...]
    ignored_outcomes: int = 0
    late_outcomes: int = 0

    def arm(self, name: str) -> ArmEvidence:
        """The arm called ``name``; KeyError when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    @property
    def units(self) -> int:
        """Exposed units of all arms."""
        return sum(arm.exposed_units for arm in self.arms)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite become null."""
        result: dict[str, Any] = finite(asdict(self))
        return result

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evidence:
        """The inverse of :meth:`to_json`."""
        arms = tuple(ArmEvidence.from_json(arm) for arm in value["arms"])
        return cls(value["taken_at"], arms, value["ignored_outcomes"])


def finite(value: Any) -> Any:
    """``value`` with every number that JSON cannot hold replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
