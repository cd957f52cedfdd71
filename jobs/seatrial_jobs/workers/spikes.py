"""Steps that stand out: a loss or a gradient far above those of the latest ordinary steps.

Median and median absolute deviation, since they do not move when a few values are wild (Huber 1981). All
workers see the same loss and gradient norm, so all decide alike.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from seatrial.config.run import SpikesSection

NORMAL = 1.4826
"""Standard deviations of a normal distribution in one MAD."""
FLAT = 0.02
"""Smallest scale, as a share of the median: a loss that hardly moves makes no spikes of noise."""


@dataclass(frozen=True)
class Spike:
    """Why a step stands out."""

    what: str
    """`loss` or `gradient norm`."""
    value: float
    median: float
    score: float
    """Robust standard deviations above the median; infinite for what is no number."""


class Detector:
    """Compares each step with the ordinary ones before it, which are all it remembers."""

    def __init__(self, settings: SpikesSection) -> None:
        self.threshold = settings.threshold
        self._enough = settings.window // 2
        self._losses: deque[float] = deque(maxlen=settings.window)
        self._norms: deque[float] = deque(maxlen=settings.window)

    def judge(self, loss: float, norm: float) -> Spike | None:
        """What stands out about a step, loss first; an ordinary step is remembered."""
        spike = self._beyond("loss", loss, self._losses) or self._beyond("gradient norm", norm, self._norms)
        if spike is None:
            self._losses.append(loss)
            self._norms.append(norm)
        return spike

    def _beyond(self, what: str, value: float, seen: deque[float]) -> Spike | None:
        middle = median(seen) if seen else math.nan
        if not math.isfinite(value):
            return Spike(what, value, middle, math.inf)
        if len(seen) < self._enough:
            return None
        deviation = NORMAL * median(abs(each - middle) for each in seen)
        score = (value - middle) / max(deviation, FLAT * abs(middle), 1e-12)
        return Spike(what, value, middle, score) if score > self.threshold else None

    def memory(self) -> dict[str, Any]:
        """What a resumed job must know, as JSON values."""
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from :meth:`memory`."""
        for seen, values in ((self._losses, memory["losses"]), (self._norms, memory["norms"])):
            seen.clear()
            seen.extend(values)
