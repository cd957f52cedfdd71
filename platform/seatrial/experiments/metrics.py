"""Metrics of every type as units' values with a mean and a variance, and compared by one sequence.

Ratios are linearised around their value (delta method: Deng, Knoblich and Lu, "Applying the Delta Method in
Metric Analytics", KDD 2018, arXiv:1803.06336, equation 3), covariates taken off by regression (CUPED: Deng,
Xu, Kohavi and Walker, WSDM 2013, equations 4 and 5). Either leaves one number for each unit, whose sums are
all that a confidence sequence needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seatrial.experiments.evidence import ArmEvidence, Evidence, Moments
from seatrial.experiments.policy import MetricPolicy
from seatrial.experiments.quantiles import compare_quantiles
from seatrial.experiments.sequential import (
    PRIOR_UNITS,
    UNDEFINED,
    ArmStats,
    Comparison,
    compare,
    compare_ratio,
)

# Of totals: what lies beyond overflows in the squares of its squares.
LARGEST_RATIO = 1e60


def stats_by_arm(metric: MetricPolicy, evidence: Evidence, primary: str) -> dict[str, ArmStats]:
    """Arm → sums of one number a unit whose mean is the metric; empty for quantiles.

    ``primary`` is the metric that each arm's ``stats`` are of.
    """
    if metric.type == "quantile":
        return {arm.name: _counted(arm, metric.name) for arm in evidence.arms}
    found = {arm.name: _moments(arm, metric.name, primary) for arm in evidence.arms}
    if metric.type == "ratio":
        return {name: _linearised(each) for name, each in found.items()}
    if metric.covariate_h is not None:
        return _adjusted(found)
    return {name: ArmStats(each.n, each.x, each.xx) for name, each in found.items()}


def compare_metric(
    metric: MetricPolicy,
    a: ArmEvidence,
    b: ArmEvidence,
    stats: Mapping[str, ArmStats],
    *,
    alpha: float,
    tuning_n: float,
) -> tuple[Comparison, Comparison]:
    """Difference of ``b`` from ``a`` and its lift; undefined when a number is missing or not finite."""
    if metric.type == "quantile":
        level = metric.quantile or 0.5
        histograms = a.histograms.get(metric.name, {}), b.histograms.get(metric.name, {})
        return compare_quantiles(*histograms, level, alpha)
    control, treatment = stats[a.name], stats[b.name]
    if not all(map(math.isfinite, (control.total, treatment.total))):
        return UNDEFINED, UNDEFINED
    settings: dict[str, Any] = {
        "alpha": alpha,
        "tuning_n": tuning_n,
        "proportion": is_binary(metric, control, treatment),
        "prior_units": PRIOR_UNITS,
    }
    difference = compare(control, treatment, relative=False, **settings)
    return difference, compare_ratio(control, treatment, **settings)


def is_binary(metric: MetricPolicy, *arms: ArmStats) -> bool:
    """Whether units are zeros and ones; those with several requests hold shares, which vary less."""
    is_plain = metric.type == "proportion" and metric.covariate_h is None
    return is_plain and all(math.isclose(arm.total, arm.total_squares) for arm in arms)


def _moments(arm: ArmEvidence, name: str, primary: str) -> Moments:
    found = arm.metrics.get(name)
    if found is None and name == primary:
        return Moments(arm.stats.n, arm.stats.total, arm.stats.total_squares)
    return found or Moments(0, 0.0, 0.0)


def _counted(arm: ArmEvidence, name: str) -> ArmStats:
    return ArmStats(sum(arm.histograms.get(name, {}).values()), 0.0, 0.0)


def _linearised(m: Moments) -> ArmStats:
    """Units' values of which the mean is x / y and the variance that of the ratio's delta method."""
    if m.n == 0:
        return ArmStats(0, 0.0, 0.0)
    if m.y == 0:
        return ArmStats(m.n, math.nan, math.nan)
    ratio, y_mean = m.x / m.y, m.y / m.n
    # The residuals x - ratio y sum to zero, so the sum of their squares is all of their spread.
    residual = max(0.0, m.xx - 2 * ratio * m.xy + ratio * ratio * m.yy)
    squares, y_squared = m.n * ratio * ratio, y_mean * y_mean
    if not (abs(ratio) <= LARGEST_RATIO and residual < LARGEST_RATIO**2 * y_squared):
        return ArmStats(m.n, math.nan, math.nan)  # denominators that cancel: no number to go by
    return ArmStats(m.n, m.n * ratio, residual / y_squared + squares)


def _adjusted(arms: Mapping[str, Moments]) -> dict[str, ArmStats]:
    """Units' values less theta (y - mean of y over all arms); theta is pooled over the arms.

    The covariate was there before the assignment, so its mean is the same in all arms and the difference of
    the adjusted means estimates the difference of the means, whatever theta is and however unequal the arms.
    """
    n, y = sum(m.n for m in arms.values()), math.fsum(m.y for m in arms.values())
    spreads = [m.yy - m.y**2 / m.n for m in arms.values() if m.n]
    together = [m.xy - m.x * m.y / m.n for m in arms.values() if m.n]
    spread = math.fsum(spreads)
    theta = math.fsum(together) / spread if spread > 1e-12 * abs(y) and n else 0.0
    centre = y / n if n else 0.0
    found = {}
    for name, m in arms.items():
        total = m.x - theta * (m.y - m.n * centre)
        # Squares of x - theta (y - centre), expanded.
        squares = m.xx + theta**2 * (m.yy - 2 * centre * m.y + m.n * centre**2)
        squares -= 2 * theta * (m.xy - centre * m.x)
        found[name] = ArmStats(m.n, total, squares)
    return found
