"""Confidence sequences, sample ratio and guardrail against known values and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.experiments.sequential import ArmStats, compare, compare_ratio
from seatrial.experiments.shares import share_above_p
from seatrial.experiments.srm import sample_ratio_p

# Published with GrowthBook's implementation of the same sequence.
MEANS = ArmStats(3000, 1396.87, 52377.9767), ArmStats(3461, 2422.7, 134698.29)
SHARES = ArmStats(3000, 1396, 1396), ArmStats(3461, 2422, 2422)


def test_a_relative_lift_of_means_is_growthbooks():
    found = compare(*MEANS, alpha=0.05, tuning_n=1000)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.50336, -0.55844, 1.56516), abs=5e-6)


def test_a_relative_lift_of_proportions_is_growthbooks():
    found = compare(*SHARES, alpha=0.05, tuning_n=5000, proportion=True)
    assert (found.low, found.high) == pytest.approx((0.40098, 0.60675), abs=5e-6)


@pytest.mark.parametrize(("arms", "proportion"), [(MEANS, False), (SHARES, True)])
def test_an_absolute_difference_is_the_difference_of_the_means(arms, proportion):
    found = compare(*arms, tuning_n=1000, relative=False, proportion=proportion)
    assert found.estimate == pytest.approx(arms[1].mean - arms[0].mean)
    assert found.high - found.estimate == pytest.approx(found.estimate - found.low)


@pytest.mark.parametrize("relative", [True, False])
def test_the_p_value_meets_alpha_where_the_interval_touches_zero(relative):
    # The sequence's scale depends on alpha, so the tuning point is chosen to keep it fixed.
    found = compare(*SHARES, alpha=0.05, tuning_n=5000, relative=relative, proportion=True)
    assert (found.p_value <= 0.05) == (found.low > 0)
    n = 600
    for wins in range(200, 320):
        close = compare(
            ArmStats(n, 200, 200), ArmStats(n, wins, wins), tuning_n=500, relative=relative, proportion=True
        )
        assert (close.p_value <= 0.05) == (close.low > 0)


@settings(deadline=None)
@given(st.integers(2, 2000), st.integers(2, 2000), st.floats(0, 1), st.floats(0, 1))
def test_a_lift_leaves_zero_exactly_when_the_difference_does(n, m, p, q):
    arms = ArmStats(n, round(n * p), round(n * p)), ArmStats(m, round(m * q), round(m * q))
    difference = compare(*arms, tuning_n=300, relative=False, proportion=True)
    lift = compare_ratio(*arms, tuning_n=300, proportion=True)
    if lift.is_defined:
        assert lift.low <= lift.estimate <= lift.high
        assert lift.p_value == difference.p_value
        for side in ("low", "high"):
            there, here = getattr(difference, side), getattr(lift, side)
            if abs(there) > 1e-9:
                assert math.copysign(1, there) == math.copysign(1, here)


def test_a_lift_over_a_negative_mean_is_measured_against_its_size():
    control, treatment = ArmStats(2000, -4000.0, 10_000.0), ArmStats(2000, -2000.0, 4_000.0)
    found = compare_ratio(control, treatment, tuning_n=1000)
    assert found.estimate == pytest.approx(0.5)
    assert 0.4 < found.low < 0.5 < found.high < 0.6


def test_with_a_well_known_control_the_two_lifts_agree():
    delta, inverted = (each(*SHARES, tuning_n=5000, proportion=True) for each in (compare, compare_ratio))
    assert (inverted.low, inverted.high) == pytest.approx((delta.low, delta.high), abs=0.01)


def test_looking_all_the_time_the_lift_covers_the_truth():
    random = np.random.default_rng(5)
    missed, trials, looks = 0, 400, range(100, 2001, 50)
    for _ in range(trials):
        a, b = (np.cumsum(random.random(1000) < share) for share in (0.1, 0.15))
        missed += any(
            found.is_defined and not found.low <= 0.5 <= found.high
            for found in (_lift(int(a[n // 2 - 1]), int(b[n // 2 - 1]), n // 2) for n in looks)
        )
    assert missed / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def _lift(a: int, b: int, n: int):
    return compare_ratio(ArmStats(n, a, a), ArmStats(n, b, b), tuning_n=400, proportion=True)


def test_swapping_the_arms_swaps_the_difference():
    there = compare(*MEANS, tuning_n=1000, relative=False)
    back = compare(*reversed(MEANS), tuning_n=1000, relative=False)
    assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))


@pytest.mark.parametrize(
    ("control", "treatment"),
    [
        (ArmStats(0, 0, 0), ArmStats(100, 50, 50)),
        (ArmStats(100, 50, 50), ArmStats(1, 1, 1)),
        (ArmStats(100, math.nan, 50), ArmStats(100, 50, 50)),
        (ArmStats(100, 50, math.inf), ArmStats(100, 50, 50)),
        (ArmStats(100, 100, 100), ArmStats(100, 200, 400)),
    ],
)
def test_what_cannot_be_known_is_undefined_and_decides_nothing(control, treatment):
    for relative in (True, False):
        found = compare(control, treatment, tuning_n=100, relative=relative)
        assert not found.is_defined
        assert math.isnan(found.p_value)


def test_a_lift_over_nothing_is_undefined_but_the_difference_is_not():
    control, treatment = ArmStats(300, 0, 0), ArmStats(300, 120, 120)
    for each in (compare, compare_ratio):
        assert not each(control, treatment, tuning_n=200, proportion=True).is_defined
    difference = compare(control, treatment, tuning_n=200, relative=False, proportion=True)
    assert difference.low > 0


def test_an_arm_without_spread_is_still_uncertain():
    few = compare(ArmStats(3, 0, 0), ArmStats(3, 3, 3), tuning_n=6, relative=False, proportion=True)
    assert few.high - few.low > 1


@pytest.mark.parametrize(("alpha", "tuning_n"), [(0, 10), (1, 10), (0.05, 0)])
def test_settings_out_of_range_are_refused(alpha, tuning_n):
    with pytest.raises(ValueError, match="give alpha"):
        compare(*MEANS, alpha=alpha, tuning_n=tuning_n)


def test_equal_arms_are_almost_always_in_ratio():
    assert sample_ratio_p([500, 500], [0.5, 0.5]) == 1.0
    assert sample_ratio_p([0, 0], [0.5, 0.5]) == 1.0
    assert sample_ratio_p([90, 10], [0.9, 0.1]) == 1.0


def test_faults_small_and_gross_are_seen():
    assert sample_ratio_p([40, 0], [0.5, 0.5]) < 1e-6
    assert sample_ratio_p([51_000, 49_000], [0.5, 0.5]) < 1e-3
    assert sample_ratio_p([700, 300, 0], [0.4, 0.3, 0.3]) < 1e-10


def test_looking_all_the_time_raises_no_false_alarm_of_the_sample_ratio():
    random = np.random.default_rng(7)
    alarms = 0
    for _ in range(400):
        heads = np.cumsum(random.random(600) < 0.5)
        alarms += any(
            sample_ratio_p([int(heads[n - 1]), n - int(heads[n - 1])], [0.5, 0.5]) <= 0.05
            for n in range(10, 601, 10)
        )
    assert alarms / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_a_share_above_its_limit_is_seen_and_one_below_is_not():
    assert share_above_p(2, 2, 0.1) < 0.05
    assert share_above_p(1, 1, 0.1) > 0.05
    assert share_above_p(30, 100, 0.1) < 1e-3
    assert share_above_p(5, 100, 0.1) == 1.0
    assert share_above_p(0, 10**7, 0.1) == 1.0
    assert share_above_p(10**6, 10**6, 1.0) == 1.0
    assert share_above_p(1, 10**6, 0.0) == 0.0
    assert share_above_p(0, 0, 0.1) == 1.0


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="give"):
        share_above_p(3, 2, 0.1)
    with pytest.raises(ValueError, match="give"):
        sample_ratio_p([1, -1], [0.5, 0.5])


def test_looking_all_the_time_raises_no_false_alarm_of_the_guardrail():
    random = np.random.default_rng(11)
    alarms = 0
    for _ in range(400):
        failed = np.cumsum(random.random(400) < 0.1)
        alarms += any(share_above_p(int(failed[n - 1]), n, 0.1) <= 0.05 for n in range(1, 401, 4))
    assert alarms / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
