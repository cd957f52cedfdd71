"""When a trial can be expected to decide."""

from __future__ import annotations

import pytest

from seatrial.experiments.forecast import units_to_decide
from seatrial.experiments.sequential import UNDEFINED, ArmStats, compare

SETTINGS = {"alpha": 0.05, "tuning_n": 1000}


def look(units, a, b):
    half = units // 2
    arms = (ArmStats(half, rate * half, rate * half) for rate in (a, b))
    return compare(*arms, relative=False, proportion=True, **SETTINGS)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.33), (0.5, 0.45), (0.02, 0.03)])
def test_at_the_units_that_were_forecast_the_interval_leaves_zero(a, b):
    found = units_to_decide(look(1000, a, b), 1000, **SETTINGS)
    before, after = look(round(found * 0.99), a, b), look(round(found * 1.01), a, b)
    assert before.low <= 0 <= before.high
    assert not after.low <= 0 <= after.high


def test_what_is_decided_needs_no_more_and_what_is_equal_is_never_told_apart():
    assert units_to_decide(look(1000, 0.2, 0.8), 1000, **SETTINGS) == 1000
    assert units_to_decide(look(1000, 0.5, 0.5), 1000, **SETTINGS) is None
    assert units_to_decide(UNDEFINED, 1000, **SETTINGS) is None
