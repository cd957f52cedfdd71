"""What would be logged with every request is logged now and then, with how often it was meant."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 30.0
MOST_KEYS = 64


class Seldom:
    """One for each kind of line; called from one thread."""

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def due(self, key: str) -> int:
        """How often it was asked for ``key`` since it was last due, with this time; 0 while it is not due."""
        now = self._clock()
        count = self._counts.get(key, 0) + 1
        if now < self._due.get(key, now):
            self._counts[key] = count
            return 0
        if len(self._due) >= MOST_KEYS and key not in self._due:
            self._due.clear()
            self._counts.clear()
        self._due[key], self._counts[key] = now + self._every_s, 0
        return count
