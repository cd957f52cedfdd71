"""What is known about a trial's arms at one moment.

Everything is grouped by unit, the thing that was assigned, and by the arm it was assigned to, whichever
version answered in the end (intention to treat).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from seatrial.experiments.sequential import ArmStats

# Bucket b of a histogram holds values in (GAMMA**(b-1), GAMMA**b], MIN_BUCKET those that are not above 0.
GAMMA = 1.02
MIN_BUCKET = -(10**6)


@dataclass(frozen=True)
class Moments:
    """Sums over the units that have a value: x is the value or numerator, y the denominator or covariate."""

    n: int
    x: float
    xx: float
    y: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Moments:
        """The inverse of JSON; null becomes NaN."""
        sums = {key: math.nan if value[key] is None else value[key] for key in ("x", "xx", "y", "yy", "xy")}
        return cls(n=value["n"], **sums)


@dataclass(frozen=True)
class ArmEvidence:
    """One arm. ``assigned_units`` counts every unit seen, ``stats`` only units with an answered request.

    ``unanswered`` is the sum, over units, of the share of their requests that the arm's own version did not
    answer: it failed, or another version had to stand in. A client's retries count within their unit.
    ``lost_units`` had neither an answer nor a failure: their clients left, or were refused (400 to 499).
    ``stats`` is of the metric that decides; ``metrics`` and ``histograms`` (bucket → units) are by name.
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
    metrics: Mapping[str, Moments] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    lost_units: int = 0

    @classmethod
    def empty(cls, name: str, version: str) -> ArmEvidence:
        """An arm that nobody has been in yet."""
        return cls(name, version, 0, 0, 0, 0, 0, 0, 0, ArmStats(0, 0.0, 0.0))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ArmEvidence:
        """The inverse of :meth:`Evidence.to_json` for one arm; null totals become NaN."""
        stats = value["stats"]
        totals = {key: math.nan if stats[key] is None else stats[key] for key in ("total", "total_squares")}
        metrics = {name: Moments.from_json(each) for name, each in value.get("metrics", {}).items()}
        histograms = {
            name: {int(at): units for at, units in each.items()}
            for name, each in value.get("histograms", {}).items()
        }
        stated = {"stats": ArmStats(n=stats["n"], **totals), "metrics": metrics, "histograms": histograms}
        return cls(**{**value, **stated})


@dataclass(frozen=True)
class Evidence:
    """All arms, those that have left too; what came until ``taken_at`` is in it.

    ``ignored_outcomes`` had a value outside 0..1 where the metric is a share, ``late_outcomes`` came after
    the attribution window, ``early_outcomes`` of a unit before its first request. ``looks`` are the units of
    the plan at the planned looks that have been taken.
    """

    taken_at: float
    arms: tuple[ArmEvidence, ...]
    ignored_outcomes: int = 0
    late_outcomes: int = 0
    looks: tuple[int, ...] = ()
    early_outcomes: int = 0

    def arm(self, name: str) -> ArmEvidence:
        """The arm called ``name``; KeyError when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def of(self, names: Iterable[str]) -> Evidence:
        """What is known of these arms alone."""
        kept = frozenset(names)
        return replace(self, arms=tuple(arm for arm in self.arms if arm.name in kept))

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
        late, looks = value.get("late_outcomes", 0), tuple(value.get("looks", ()))
        early = value.get("early_outcomes", 0)
        return cls(value["taken_at"], arms, value["ignored_outcomes"], late, looks, early)


def finite(value: Any) -> Any:
    """``value`` with every number that JSON cannot hold replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
