"""Guardrails on means while every value seen is the same, so that nothing is known of how values vary.

No test holds then without a bound on values that were not seen. With one there is an exact test: of values
that are at least zero and whose mean is at most m, the product of value / m is a supermartingale, so its
inverse is a p-value at every look (Ville's inequality; the bet of all that one has in Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024, arXiv:2010.09686). Of n
equal values x it is (m / x)^n. Values with a largest possible one are turned round.

Another test speaks once values differ. This one errs with a hundredth of the alpha beside it.
"""

from __future__ import annotations

import math

from seatrial.experiments.policy import BUILT_IN, GuardrailPolicy
from seatrial.experiments.sequential import ArmStats

SHARE_OF_ALPHA = 0.01


def beyond_p(guardrail: GuardrailPolicy, ours: ArmStats, theirs: ArmStats) -> float:
    """Anytime-valid p-value of "within the guardrail" for arms without any spread.

    NaN where the metric has no bound that the test needs: a smallest value, zero, for the arm whose mean is
    too large, as shares have and all that requests say by themselves; a largest one, the metric's ``cap`` or
    a share's 1, for the arm whose mean is too small. A ``limit`` asks for the challenger's alone.
    """
    metric = guardrail.metric
    if metric.type == "ratio" or metric.covariate_h is not None:
        return math.nan
    is_share = metric.type == "proportion"
    is_positive, cap = is_share or metric.name in BUILT_IN, metric.cap
    if is_share:
        cap = min(1.0, cap or 1.0)
    if guardrail.limit is not None:
        if metric.higher_is_better:
            return math.nan if cap is None else _spent(_small_p(theirs, guardrail.limit, cap))
        return _spent(_large_p(theirs, guardrail.limit)) if is_positive else math.nan
    if cap is None or not is_positive:
        return math.nan
    margin = guardrail.margin or 0.0
    if not metric.higher_is_better:
        return _spent(2 * _apart_p(theirs, ours, 1 + margin, cap))
    return _spent(2 * _apart_p(ours, theirs, 1 / (1 - margin), cap)) if margin < 1 else 1.0


def _spent(p: float) -> float:
    return min(1.0, p / SHARE_OF_ALPHA)


def _large_p(arm: ArmStats, mean: float) -> float:
    """Of "the mean is at most ``mean``", values being at least zero."""
    if arm.mean <= mean:
        return 1.0
    return float((mean / arm.mean) ** arm.n) if mean > 0 else 0.0


def _small_p(arm: ArmStats, mean: float, cap: float) -> float:
    """Of "the mean is at least ``mean``", values being at most ``cap``."""
    if arm.mean >= mean:
        return 1.0
    return float(((cap - mean) / (cap - arm.mean)) ** arm.n) if mean < cap else 0.0


def _apart_p(large: ArmStats, small: ArmStats, factor: float, cap: float) -> float:
    """Half of that of "the mean of ``large`` is at most ``factor`` times that of ``small``".

    If it is, then for every m the one's is at most m or the other's at least m / factor; both are tested at
    the m at which they say it equally loudly.
    """
    low, high = factor * small.mean, large.mean
    if low >= high:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        is_below = _large_p(large, middle) < _small_p(small, middle / factor, cap)
        low, high = (middle, high) if is_below else (low, middle)
    return max(_large_p(large, high), _small_p(small, high / factor, cap))
