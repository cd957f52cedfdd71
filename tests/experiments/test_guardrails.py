"""Guardrails on means: how often one errs at its limit, and what one says while all values are the same."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from seatrial.experiments.evidence import MIN_BUCKET, ArmEvidence, Evidence, Moments
from seatrial.experiments.guardrails import NO_BUCKETS, SAME, TOO_FEW, watch, why_silent
from seatrial.experiments.judgement import GuardrailResult
from seatrial.experiments.metrics import stats_by_arm
from seatrial.experiments.policy import GuardrailPolicy, MetricPolicy
from seatrial.experiments.sequential import ArmStats, compare

COST = MetricPolicy("cost", "mean", higher_is_better=False)
CAPPED = MetricPolicy("cost", "mean", higher_is_better=False, cap=4.0)
STARS = MetricPolicy("stars", "mean", cap=5.0)
SPENT = MetricPolicy("spent", "mean")
REFUSED = MetricPolicy("refusals", "proportion", higher_is_better=False)


def arm(name: str, n: int, total: float, squares: float, metric: str) -> ArmEvidence:
    sums = {metric: Moments(n, total, squares)}
    return ArmEvidence(name, name, n, n, n, n, 0, 0, n, ArmStats(n, total, squares), 0.0, sums)


def same(name: str, n: int, value: float, metric: str) -> ArmEvidence:
    return arm(name, n, math.fsum([value] * n), math.fsum([value * value] * n), metric)


def watched(rule: GuardrailPolicy, a: ArmEvidence, b: ArmEvidence) -> GuardrailResult:
    stats = stats_by_arm(rule.metric, Evidence(0.0, (a, b)), "another")
    return watch(rule, a, b, stats, 200)


@pytest.mark.parametrize("n", range(20, 130, 7))
@pytest.mark.parametrize(("ours", "theirs"), [(1.0, 2.0), (0.1, 0.2), (0.3, 0.7), (1e6 / 3, 2e6 / 3)])
def test_equal_values_have_no_spread_however_they_are_rounded(n: int, ours: float, theirs: float) -> None:
    a, b = same("a", n, ours, "m").stats, same("b", n, theirs, "m").stats
    assert a.variance(proportion=False) == b.variance(proportion=False) == 0.0
    assert not compare(a, b, tuning_n=200, relative=False, prior_units=50).is_defined
    silent = watched(GuardrailPolicy("cost", COST, margin=0.1), same("a", n, ours, "cost"),
                     same("b", n, theirs, "cost"))  # fmt: skip
    assert math.isnan(silent.p)
    level = same("a", n, ours, "cost"), same("b", n + 13, ours, "cost")
    assert watched(GuardrailPolicy("cost", COST, margin=0.0), *level).p == 1.0


@pytest.mark.parametrize(
    ("rule", "ours", "theirs", "says"),
    [
        (GuardrailPolicy("cost", COST, limit=1.5), 1.0, 2.0, "broken"),
        (GuardrailPolicy("cost", COST, limit=1.5), 1.0, 1.4, "kept"),
        (GuardrailPolicy("cost", COST, limit=0.0), 0.0, 0.1, "broken"),
        (GuardrailPolicy("cost", COST, margin=0.1), 1.0, 2.0, "silent"),  # who knows what 1.0 may cost yet
        (GuardrailPolicy("cost", CAPPED, margin=0.1), 1.0, 2.0, "broken"),
        (GuardrailPolicy("cost", CAPPED, margin=0.1), 1.0, 1.0, "kept"),
        (GuardrailPolicy("stars", STARS, limit=4.0), 5.0, 1.0, "broken"),
        (GuardrailPolicy("stars", STARS, limit=4.0), 5.0, 5.0, "kept"),
        (GuardrailPolicy("stars", STARS, margin=0.1), 5.0, 1.0, "silent"),  # may be below zero
        (GuardrailPolicy("spent", SPENT, limit=4.0), 0.0, 0.0, "silent"),
        (GuardrailPolicy("refusals", REFUSED, margin=0.1), 0.0, 1.0, "broken"),
        (GuardrailPolicy("refusals", REFUSED, margin=0.1), 0.0, 0.0, "kept"),
    ],
)
def test_while_all_values_are_the_same_a_guardrail_speaks_where_a_bound_lets_it(
    rule: GuardrailPolicy, ours: float, theirs: float, says: str
) -> None:
    a, b = (same(name, 60, value, rule.name) for name, value in (("a", ours), ("b", theirs)))
    found = watched(rule, a, b)
    assert ("broken" if found.breached else "silent" if math.isnan(found.p) else "kept") == says
    if says == "silent":
        assert why_silent(rule, a, b) == SAME
        assert why_silent(rule, same("a", 60, 1.0, rule.name), same("b", 19, 1.0, rule.name)) == TOO_FEW


@pytest.mark.parametrize("n", [20, 60, 200, 1000])
@pytest.mark.parametrize("factor", [1.02, 1.1, 1.5, 3.0])
def test_values_that_only_happen_to_be_the_same_break_nothing_more_often_than_allowed(
    n: int, factor: float
) -> None:
    """Against the least favourable truth within the guardrail: what was not seen is as far off as can be."""
    allowed = 0.05 * 0.01
    if watched(
        GuardrailPolicy("cost", COST, limit=1.0), *(same(x, n, factor, "cost") for x in "ab")
    ).breached:
        # The mean is 1 when the value seen has probability 1 / factor and all others are zero.
        assert factor**-n <= allowed
    pair = same("a", n, 1.0, "cost"), same("b", n, factor, "cost")
    if watched(GuardrailPolicy("cost", CAPPED, margin=0.0), *pair).breached:
        ours = np.linspace(0.0, 1.0, 10_001)  # probability of 1.0 for the champion, else its cap
        theirs = np.minimum(1.0, (ours + (1 - ours) * 4.0) / factor)
        assert np.max(ours**n * theirs**n) <= allowed


def test_values_that_are_the_same_break_a_guardrail_soon() -> None:
    limited, capped = GuardrailPolicy("cost", COST, limit=1.0), GuardrailPolicy("cost", CAPPED, margin=0.0)
    assert watched(limited, same("a", 20, 1.5, "cost"), same("b", 20, 1.5, "cost")).breached
    assert watched(capped, same("a", 40, 1.0, "cost"), same("b", 40, 2.0, "cost")).breached


def test_a_smallest_mean_is_rarely_missed_by_values_of_which_few_are_large() -> None:
    """At its limit, looked at after every 20 units; by its own spread alone every sixth was rolled back."""
    random, wrong, trials = np.random.default_rng(5), 0, 300
    rule = GuardrailPolicy("spent", SPENT, limit=math.exp(0.5))
    for values in np.exp(random.standard_normal((trials, 2, 1000))):
        sums = [(row.cumsum(), (row * row).cumsum()) for row in values]
        wrong += any(
            watched(rule, *(
                arm(name, n, float(x[n - 1]), float(xx[n - 1]), "spent")
                for name, (x, xx) in zip("ab", sums, strict=True)
            )).breached
            for n in range(20, 1001, 20)
        )  # fmt: skip
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_a_smallest_quantile_below_zero_is_not_called_kept_by_values_that_are_not_told_apart() -> None:
    rule = GuardrailPolicy("m", MetricPolicy("m", "quantile", quantile=0.5), limit=-1.0)
    a, b = (replace(arm(x, 60, -300.0, 1500.0, "m"), histograms={"m": {MIN_BUCKET: 60}}) for x in "ab")
    assert math.isnan(watched(rule, a, b).p)
    assert why_silent(rule, a, b) == NO_BUCKETS
    above = replace(b, histograms={"m": {3: 60}})
    assert watched(rule, a, above).p == 1.0
