"""Sums over units that are added to and taken from without ever drifting: whole numbers, no rounding.

A value is kept as a multiple of 2**-200, its square and products as multiples of 2**-400. What is smaller is
cut off, the same way each time, so sums of the same units are equal to the last bit, in whatever order and
however often they changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seatrial.experiments.evidence import GAMMA, MIN_BUCKET, Moments
from seatrial.store.figures import UnitFigures
from seatrial.store.rules import Rules

BITS = 200
ONE, ONE_SQUARED = 1 << BITS, 1 << 2 * BITS
LOG_GAMMA = math.log(GAMMA)
COUNTS = ("requests", "answered", "failed", "fell_back", "outcomes", "ignored", "late", "early")


def bucket_of(value: float) -> int:
    """The index b with ``value`` in (GAMMA**(b-1), GAMMA**b]; MIN_BUCKET for values that are not above 0."""
    return math.ceil(math.log(value) / LOG_GAMMA - 1e-9) if value > 0 else MIN_BUCKET


@dataclass
class ArmSums:
    """All units of one arm. ``metrics`` holds n, x, xx, y, yy, xy of each metric, scaled up."""

    units: int = 0
    exposed: int = 0
    lost: int = 0
    unanswered: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    metrics: list[list[int]] = field(default_factory=list)
    histograms: dict[str, Counter[int]] = field(default_factory=dict)

    def change(self, figures: UnitFigures, rules: Rules, sign: int) -> None:
        """Add a unit's figures (``sign`` 1) or take them out again (-1)."""
        self.units += sign
        self.exposed += sign * (figures.answered > 0)
        self.lost += sign * (figures.answered == figures.failed == 0)
        self.unanswered += sign * _scaled(figures.left / figures.requests)
        for name in COUNTS:
            self.counts[name] += sign * getattr(figures, name)
        while len(self.metrics) < len(rules.metrics):
            self.metrics.append([0] * 6)
        for metric, total, pair in zip(rules.metrics, self.metrics, figures.values, strict=True):
            if pair is None:
                continue
            x, y = _scaled(pair[0]), _scaled(pair[1])
            for place, term in enumerate((1, x, x * x, y, y * y, x * y)):
                total[place] += sign * term
            if metric.type == "quantile":
                histogram = self.histograms.setdefault(metric.name, Counter())
                histogram[bucket_of(pair[0])] += sign

    def moments(self, place: int) -> Moments:
        """Those of the metric at ``place``, each sum rounded once."""
        if place >= len(self.metrics):
            return Moments(0, 0.0, 0.0)
        n, x, xx, y, yy, xy = self.metrics[place]
        return Moments(n, x / ONE, xx / ONE_SQUARED, y / ONE, yy / ONE_SQUARED, xy / ONE_SQUARED)

    def histogram(self, metric: str) -> dict[int, int]:
        """Bucket → units."""
        return {at: n for at, n in sorted(self.histograms.get(metric, {}).items()) if n}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; whole numbers of any size."""
        return {
            "units": self.units,
            "exposed": self.exposed,
            "lost": self.lost,
            "unanswered": self.unanswered,
            "counts": dict(self.counts),
            "metrics": self.metrics,
            "histograms": {name: dict(found) for name, found in self.histograms.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ArmSums:
        """The inverse of :meth:`to_json`."""
        histograms = {
            name: Counter({int(at): n for at, n in found.items()})
            for name, found in value["histograms"].items()
        }
        return cls(
            value["units"],
            value["exposed"],
            value.get("lost", 0),
            value["unanswered"],
            Counter(value["counts"]),
            value["metrics"],
            histograms,
        )


def _scaled(value: float) -> int:
    return int(math.ldexp(value, BITS))
