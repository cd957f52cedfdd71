"""What a challenger must keep within: one-sided, and allowed to end its part at any look.

A guardrail speaks of one challenger. It is broken when its p-value is at most its alpha; while it has too few
units or a number is missing it says nothing, which never promotes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from seatrial.experiments import unvarying
from seatrial.experiments.evidence import MIN_BUCKET, ArmEvidence, Moments
from seatrial.experiments.judgement import GuardrailResult
from seatrial.experiments.metrics import is_binary
from seatrial.experiments.policy import GuardrailPolicy, TrialPolicy
from seatrial.experiments.quantiles import above_factor_p, above_limit_p, below_limit_p, quantile
from seatrial.experiments.sequential import PRIOR_UNITS, ArmStats, above_zero_p, estimate_and_variance
from seatrial.experiments.shares import share_above_p

# Units with a value that an arm must have before a mean speaks.
FEWEST_VALUES = 20
ERRORS = "max_error_share"
# Relative difference of two means of equal values that adding and dividing may leave.
ROUNDING = 1e-12
TOO_FEW = "too few values to speak"
SAME = "every value so far is the same, which says nothing of how they vary"
NO_BUCKETS = "a quantile's values that are not above zero are not told apart"


def errors(policy: TrialPolicy, b: ArmEvidence) -> GuardrailResult:
    """The guardrail that every trial has: requests that the challenger's own version left unanswered."""
    p = share_above_p(b.unanswered, b.assigned_units, policy.max_error_share)
    value = b.unanswered / b.assigned_units if b.assigned_units else math.nan
    return GuardrailResult(ERRORS, value, policy.max_error_share, p, p <= policy.guardrail_alpha)


def watch(
    guardrail: GuardrailPolicy,
    a: ArmEvidence,
    b: ArmEvidence,
    stats: Mapping[str, ArmStats],
    tuning_n: float,
) -> GuardrailResult:
    """How challenger ``b`` keeps within ``guardrail``, ``a`` being the champion."""
    if guardrail.metric.type == "quantile":
        value, limit, p = _quantile(guardrail, a, b)
    else:
        value, limit, p = _mean(guardrail, stats[a.name], stats[b.name], tuning_n)
    return GuardrailResult(guardrail.name, value, limit, p, math.isfinite(p) and p <= guardrail.alpha)


def _quantile(guardrail: GuardrailPolicy, a: ArmEvidence, b: ArmEvidence) -> tuple[float, float, float]:
    level, name = guardrail.metric.quantile or 0.5, guardrail.name
    ours, theirs = a.histograms.get(name, {}), b.histograms.get(name, {})
    value = quantile(theirs, level)
    sign = -1 if guardrail.metric.higher_is_better else 1
    limit = guardrail.limit if guardrail.limit is not None else math.nan
    if guardrail.margin is not None:
        limit = (1 + sign * guardrail.margin) * quantile(ours, level)
    fewest = sum(theirs.values())
    if guardrail.margin is not None:
        fewest = min(fewest, sum(ours.values()))
    # Values that are not above zero are in one bucket: whether they are below such a limit nobody knows.
    is_blind = sign < 0 and limit <= 0 and MIN_BUCKET in theirs
    if fewest < FEWEST_VALUES or not math.isfinite(limit) or is_blind:
        return value, limit, math.nan
    if guardrail.limit is not None:
        p = below_limit_p(theirs, level, limit) if sign < 0 else above_limit_p(theirs, level, limit)
    elif sign < 0:
        # Ours above theirs / (1 - margin): a margin of 1 or more lets everything pass.
        keep = 1 - (guardrail.margin or 0.0)
        p = above_factor_p(theirs, ours, level, 1 / keep) if keep > 0 else 1.0
    else:
        p = above_factor_p(ours, theirs, level, 1 + (guardrail.margin or 0.0))
    return value, limit, p


def _mean(
    guardrail: GuardrailPolicy, ours: ArmStats, theirs: ArmStats, tuning_n: float
) -> tuple[float, float, float]:
    sign = -1 if guardrail.metric.higher_is_better else 1
    if guardrail.limit is not None:
        limit, p = guardrail.limit, _over_limit_p(guardrail, ours, theirs, tuning_n)
        return theirs.mean, limit, p
    # Worse by the margin of the champion's size: whatever the sign of its mean.
    allowed = 1 + sign * (guardrail.margin or 0.0) * math.copysign(1, ours.mean or 1.0)
    limit = allowed * ours.mean
    if min(ours.n, theirs.n) < FEWEST_VALUES:
        return theirs.mean, limit, math.nan
    scaled = ArmStats(ours.n, allowed * ours.total, allowed * allowed * ours.total_squares)
    proportion = is_binary(guardrail.metric, ours, theirs) and allowed == 1
    estimate, variance = estimate_and_variance(scaled, theirs, proportion=proportion, prior_units=PRIOR_UNITS)
    if variance == 0:
        # Two arms without any spread and without any difference break nothing.
        is_kept = sign * estimate <= ROUNDING * abs(limit)
        return theirs.mean, limit, 1.0 if is_kept else unvarying.beyond_p(guardrail, ours, theirs)
    p = above_zero_p(sign * estimate, variance, ours.n + theirs.n, alpha=guardrail.alpha, tuning_n=tuning_n)
    return theirs.mean, limit, p


def _over_limit_p(guardrail: GuardrailPolicy, ours: ArmStats, theirs: ArmStats, tuning_n: float) -> float:
    """Exact for what lies between 0 and 1, by the sequence otherwise."""
    limit = guardrail.limit or 0.0
    if theirs.n == 0 or not (math.isfinite(theirs.total) and math.isfinite(theirs.total_squares)):
        return math.nan
    is_higher_better = guardrail.metric.higher_is_better
    if guardrail.metric.type == "proportion" and guardrail.metric.covariate_h is None:
        total = min(max(theirs.total, 0.0), float(theirs.n))
        if is_higher_better:
            return share_above_p(theirs.n - total, theirs.n, 1 - limit)
        return share_above_p(total, theirs.n, limit)
    if theirs.n < FEWEST_VALUES:
        return math.nan
    estimate = (theirs.mean - limit) * (-1 if is_higher_better else 1)
    # Rare large values that were not seen make the mean and its spread too small together, and the sequence
    # then errs many times as often as alpha. The champion's values vary as the challenger's may.
    spread = max(theirs.variance(proportion=False), _known(ours.variance(proportion=False)))
    if spread == 0:
        return 1.0 if estimate <= 0 else unvarying.beyond_p(guardrail, ours, theirs)
    return above_zero_p(estimate, spread / theirs.n, theirs.n, alpha=guardrail.alpha, tuning_n=tuning_n)


def _known(variance: float) -> float:
    return variance if math.isfinite(variance) else 0.0


def why_silent(guardrail: GuardrailPolicy, a: ArmEvidence, b: ArmEvidence) -> str:
    """Why the guardrail has no p-value yet, ``a`` being the champion; told to a person."""
    needed = (b,) if guardrail.limit is not None else (a, b)
    metric = guardrail.metric
    if metric.type == "quantile":
        counts = [sum(arm.histograms.get(metric.name, {}).values()) for arm in needed]
        return TOO_FEW if min(counts) < FEWEST_VALUES else NO_BUCKETS
    found = [arm.metrics.get(metric.name, Moments(0, 0.0, 0.0)) for arm in needed]
    if min(each.n for each in found) < FEWEST_VALUES:
        return TOO_FEW
    if not all(math.isfinite(each.x) and math.isfinite(each.xx) for each in found):
        return "a value is not a finite number"
    if metric.type == "ratio" and any(each.y == 0 for each in found):
        return f"{metric.denominator} adds up to zero"
    return SAME
