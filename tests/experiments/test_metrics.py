"""Metrics of every type against units' own values, guardrails, and what old records say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from seatrial.experiments.evidence import GAMMA, ArmEvidence, Evidence, Moments
from seatrial.experiments.guardrails import watch
from seatrial.experiments.metrics import compare_metric, stats_by_arm
from seatrial.experiments.policy import GuardrailPolicy, MetricPolicy
from seatrial.experiments.quantiles import bounds, quantile
from seatrial.experiments.sequential import ArmStats, above_zero_p

RANDOM = np.random.default_rng(12)


def histogram(values: np.ndarray) -> dict[int, int]:
    return dict(Counter(math.ceil(math.log(value) / math.log(GAMMA) - 1e-9) for value in values))


def arm(name: str, x: np.ndarray, y: np.ndarray | None = None, metric: str = "m") -> ArmEvidence:
    y = np.zeros(len(x)) if y is None else y
    sums = [float(np.sum(each)) for each in (x, x * x, y, y * y, x * y)]
    n, moments = len(x), Moments(len(x), *sums)
    stats = ArmStats(n, moments.x, moments.xx)
    buckets = {metric: histogram(x)} if (x > 0).all() else {}
    return ArmEvidence(name, name, n, n, n, n, 0, 0, n, stats, 0.0, {metric: moments}, buckets)


def stats(metric: MetricPolicy, *arms: ArmEvidence) -> dict[str, ArmStats]:
    return stats_by_arm(metric, Evidence(0.0, arms), metric.name)


def test_a_ratio_has_the_delta_methods_mean_and_variance():
    y = 1.0 + RANDOM.poisson(3, 500)
    x = RANDOM.binomial(y.astype(int), 0.4).astype(float)
    found = stats(MetricPolicy("m", "ratio", denominator="requests"), arm("a", x, y))["a"]
    assert found.mean == pytest.approx(x.sum() / y.sum())
    (vx, c), (_, vy) = np.cov(x, y)
    r, mean = x.sum() / y.sum(), y.mean()
    assert found.variance(proportion=False) == pytest.approx((vx - 2 * r * c + r * r * vy) / mean**2)


def test_history_narrows_the_interval_and_leaves_the_difference_unbiased():
    estimates, widths = [], {}
    for covariate_h in (None, 24.0):
        metric = MetricPolicy("m", "mean", covariate_h=covariate_h)
        for seed in range(200):
            random = np.random.default_rng(seed)
            past = random.standard_normal(900) + 3
            x = 0.9 * past + 0.3 * random.standard_normal(900) + 0.1 * (np.arange(900) >= 700)
            arms = arm("a", x[:700], past[:700]), arm("b", x[700:], past[700:])
            difference, _ = compare_metric(metric, *arms, stats(metric, *arms), alpha=0.05, tuning_n=900)
            if covariate_h:
                estimates.append(difference.estimate)
        widths[covariate_h] = difference.high - difference.low
    assert widths[24.0] < 0.4 * widths[None]
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - 0.1) < 4 * error


def test_units_without_any_history_are_compared_as_they_are():
    x = RANDOM.standard_normal(300)
    arms = arm("a", x[:150]), arm("b", x[150:])
    plain, adjusted = MetricPolicy("m", "mean"), MetricPolicy("m", "mean", covariate_h=1.0)
    assert stats(adjusted, *arms) == stats(plain, *arms)


def test_a_quantile_lies_within_its_bounds_and_they_close_in():
    values = RANDOM.lognormal(0, 1, 200_000)
    truth = math.exp(1.6448536)
    widths = []
    for n in (500, 5_000, 200_000):
        found = histogram(values[:n])
        low, high = bounds(found, 0.95, 0.025)
        assert low <= truth <= high
        assert low <= quantile(found, 0.95) <= high
        widths.append(high / low)
    assert widths[0] > widths[1] > widths[2] < 1.12
    assert bounds({}, 0.95, 0.025) == (0.0, math.inf)
    assert bounds({3: 5}, 0.95, 0.025)[1] == math.inf


def test_looking_all_the_time_the_bounds_hold_the_quantile():
    random, missed, trials = np.random.default_rng(4), 0, 200
    for _ in range(trials):
        values = random.lognormal(0, 1, 1500)
        found = (bounds(histogram(values[:n]), 0.9, 0.025) for n in range(50, 1501, 50))
        missed += any(not low <= math.exp(1.2815516) <= high for low, high in found)
    assert missed / trials <= 0.05


def test_a_slower_arm_is_seen_by_its_quantile():
    metric = MetricPolicy("m", "quantile", higher_is_better=False, quantile=0.95)
    values = [RANDOM.lognormal(0, 0.3, 4000) for _ in range(3)]
    same = arm("a", values[0]), arm("b", values[1])
    slower = arm("b", values[2] * 1.5)
    for other, is_seen in ((same[1], False), (slower, True)):
        difference, lift = compare_metric(
            metric, same[0], other, stats(metric, same[0], other), alpha=0.05, tuning_n=1
        )
        assert (difference.low > 0) == is_seen == (difference.p_value <= 0.05)
        assert lift.low <= lift.estimate <= lift.high


P95 = MetricPolicy("m", "quantile", higher_is_better=False, quantile=0.95)
MEAN = MetricPolicy("m", "mean", higher_is_better=False)
SHARE = MetricPolicy("m", "proportion", higher_is_better=False)
GOOD = MetricPolicy("m", "mean", higher_is_better=True)


@pytest.mark.parametrize(
    ("metric", "bound", "factor", "breached"),
    [
        (P95, {"margin": 0.1}, 1.0, False),
        (P95, {"margin": 0.1}, 1.5, True),
        (P95, {"limit": 1.8}, 1.0, False),
        (P95, {"limit": 1.8}, 1.5, True),
        (MEAN, {"margin": 0.1}, 1.0, False),
        (MEAN, {"margin": 0.1}, 1.3, True),
        (MEAN, {"limit": 1.15}, 1.0, False),
        (MEAN, {"limit": 1.15}, 1.3, True),
        (GOOD, {"margin": 0.1}, 1.0, False),
        (GOOD, {"margin": 0.1}, 0.7, True),
        (GOOD, {"limit": 0.9}, 0.7, True),
        (GOOD, {"limit": 0.9}, 1.3, False),
    ],
)
def test_a_guardrail_is_broken_by_what_is_beyond_it_and_only_by_that(metric, bound, factor, breached):
    values = np.random.default_rng(8).lognormal(0, 0.3, 8000)
    a, b = arm("a", values[:4000]), arm("b", values[4000:] * factor)
    rule = GuardrailPolicy("m", metric, **bound)
    found = watch(rule, a, b, stats(metric, a, b), 1000)
    assert found.breached == breached
    assert found.p <= 0.05 if breached else found.p > 0.05


def test_a_share_has_an_exact_guardrail():
    a, few = arm("a", np.zeros(40)), arm("b", np.array([1.0] * 6 + [0.0] * 4))
    rule = GuardrailPolicy("m", SHARE, limit=0.1)
    assert watch(rule, a, few, stats(SHARE, a, few), 100).breached
    assert not watch(rule, a, a, stats(SHARE, a, a), 100).breached


@pytest.mark.parametrize("metric", [P95, MEAN, GOOD])
@pytest.mark.parametrize("bound", [{"limit": 1.0}, {"margin": 0.1}])
def test_a_guardrail_without_values_says_nothing(metric, bound):
    empty = ArmEvidence.empty("a", "1"), ArmEvidence.empty("b", "2")
    found = watch(GuardrailPolicy("m", metric, **bound), *empty, stats(metric, *empty), 100)
    assert math.isnan(found.p)
    assert not found.breached
    broken = replace(arm("b", np.ones(50)), metrics={"m": Moments(50, math.nan, 1.0)}, histograms={})
    found = watch(GuardrailPolicy("m", metric, **bound), broken, broken, stats(metric, broken, broken), 100)
    assert math.isnan(found.p)


def test_looking_all_the_time_a_mean_at_its_limit_is_rarely_over_it():
    values = np.random.default_rng(9).lognormal(0, 0.7, (400, 2000)) / math.exp(0.245)
    n = np.arange(50, 2001, 25)
    totals = values.cumsum(axis=1)[:, n - 1]
    squares = (values**2).cumsum(axis=1)[:, n - 1]
    wrong = 0
    for total, square in zip(totals, squares, strict=True):
        variance = (square - total**2 / n) / (n - 1) / n
        cells = zip(total / n - 1, variance, n, strict=True)
        wrong += any(
            above_zero_p(float(e), float(v), int(k), alpha=0.05, tuning_n=500) <= 0.05 for e, v, k in cells
        )
    assert wrong / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    "sums",
    [
        (19.0, 19.0, 1.9e-199, 0.0, 0.0),  # denominators that all but cancel each other
        (0.0, 0.0, 2e-199, 0.0, 0.0),
        (1e16, 1e31, 1e-60, 1e31, 1e31),
        (1e16, 1e31, 1e-45, 2e31, 0.0),
    ],
)
def test_denominators_that_cancel_decide_nothing_and_stop_nobody(sums):
    ratio = MetricPolicy("m", "ratio", higher_is_better=False, denominator="other")
    y = np.ones(50)
    good = arm("a", y, y)
    odd = replace(arm("b", y, y), metrics={"m": Moments(50, *sums)}, stats=ArmStats(50, sums[0], sums[1]))
    for pair in ((good, odd), (odd, good)):
        found = stats(ratio, *pair)
        difference, lift = compare_metric(ratio, *pair, found, alpha=0.05, tuning_n=100)
        assert not lift.is_defined or difference.is_defined
        for bound in ({"limit": 2.0}, {"margin": 0.1}):
            assert not watch(GuardrailPolicy("m", ratio, **bound), *pair, found, 100).breached


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("bound", [{"limit": 1e300}, {"limit": -1e300}, {"limit": 1e-320}, {"margin": 1e200}])
@pytest.mark.parametrize("kind", ["mean", "proportion", "count", "quantile"])
def test_a_guardrail_of_any_size_is_judged(higher_is_better, bound, kind):
    metric = MetricPolicy("m", kind, higher_is_better=higher_is_better)
    for values in (np.full(50, 0.5), np.linspace(0.1, 1.0, 50), np.full(50, 1e-30)):
        pair = arm("a", values), arm("b", values)
        assert watch(GuardrailPolicy("m", metric, **bound), *pair, stats(metric, *pair), 100).name == "m"
