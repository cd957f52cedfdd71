"""Which checkpoints stay: the newest, and the best by held-out loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A complete checkpoint in storage."""

    name: str
    """Sorts by step."""
    heldout: float | None
    """Held-out loss at its step, if it was measured there."""


def superfluous(present: Iterable[Kept], *, newest: int, best: int) -> list[str]:
    """Names of the checkpoints that may go; of equal losses the later one is better."""
    by_age = sorted(present, key=lambda each: each.name)
    measured = [each for each in by_age if each.heldout is not None and math.isfinite(each.heldout)]
    by_loss = measured[::-1]
    by_loss.sort(key=lambda each: each.heldout or 0.0)
    stay = {each.name for each in [*by_age[-newest:], *by_loss[:best]]}
    return [each.name for each in by_age if each.name not in stay]
