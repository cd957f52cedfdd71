"""Which checkpoints stay: the newest and the best, whatever order they are seen in."""

from __future__ import annotations

import math

import pytest

from seatrial_jobs.checkpoints.retention import Kept, superfluous

LOSSES = [3.0, 1.0, None, 2.0, math.nan, 2.5]
PRESENT = [Kept(f"checkpoint-{step:08d}-abc", loss) for step, loss in enumerate(LOSSES)]


def steps_left(newest: int, best: int) -> list[int]:
    gone = superfluous(reversed(PRESENT), newest=newest, best=best)
    return [step for step, kept in enumerate(PRESENT) if kept.name not in gone]


@pytest.mark.parametrize(
    ("newest", "best", "left"),
    [
        (1, 0, [5]),
        (2, 0, [4, 5]),
        (2, 1, [1, 4, 5]),
        (1, 2, [1, 3, 5]),
        (1, 9, [0, 1, 3, 5]),
        (9, 1, [*range(6)]),
    ],
)
def test_the_newest_and_the_best_stay(newest: int, best: int, left: list[int]):
    assert steps_left(newest, best) == left


def test_of_equal_losses_the_later_one_stays():
    equal = [Kept(f"checkpoint-{step:08d}-abc", 1.0) for step in range(4)]
    assert superfluous(equal, newest=1, best=2) == [kept.name for kept in equal[:2]]
