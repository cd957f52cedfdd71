"""Comparing two arms so that anybody may look at any time.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central
limit theory and asymptotic confidence sequences" (arXiv:2103.06476v7), in the form that GrowthBook uses: the
interval covers the truth at all sample sizes together with probability 1 - alpha, so a trial may be stopped
the first time that the interval leaves zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# What rounding alone may leave of the difference of two equal sums, relative to them.
ROUNDING = 2.0**-50


@dataclass(frozen=True)
class ArmStats:
    """Sufficient statistics of one arm: units, sum of their values, sum of the squares."""

    n: int
    total: float
    total_squares: float

    @property
    def mean(self) -> float:
        """Mean value of a unit; NaN without units."""
        return self.total / self.n if self.n else math.nan

    def variance(self, *, proportion: bool) -> float:
        """Variance of one unit's value; NaN when it cannot be known yet."""
        if self.n == 0 or not (math.isfinite(self.total) and math.isfinite(self.total_squares)):
            return math.nan
        if proportion:
            # An arm of only zeros or only ones has no spread of its own, yet its rate is not certain: the
            # rule of succession gives it that of (x + 1) / (n + 2).
            is_flat = self.total in (0, self.n)
            rate = (self.total + 1) / (self.n + 2) if is_flat else self.mean
            return rate * (1 - rate)
        if self.n < 2:
            return math.nan
        spread = self.total_squares - self.total**2 / self.n
        return spread / (self.n - 1) if spread > ROUNDING * self.total_squares else 0.0


@dataclass(frozen=True)
class Comparison:
    """Treatment against control. ``p_value`` is valid at any look; all are NaN when undefined."""

    estimate: float
    low: float
    high: float
    p_value: float

    @property
    def is_defined(self) -> bool:
        """Whether there is an interval at all; an undefined comparison decides nothing."""
        return all(map(math.isfinite, (self.estimate, self.low, self.high)))


# Units' worth of the variance common to both arms that steadies a small arm's own, see `compare`.
PRIOR_UNITS = 50.0

UNDEFINED = Comparison(math.nan, math.nan, math.nan, math.nan)


def compare(
    control: ArmStats,
    treatment: ArmStats,
    *,
    alpha: float = 0.05,
    tuning_n: float,
    relative: bool = True,
    proportion: bool = False,
    prior_units: float = 0.0,
) -> Comparison:
    """The treatment's lift over the control with its confidence sequence.

    The lift is ``(treatment - control) / |control|`` of the means, or their plain difference when not
    ``relative``. The interval is tightest when about ``tuning_n`` units are in both arms together.

    The sequence is asymptotic: with a small arm of skewed or rare values, whose spread is seen too small just
    when its mean is, it errs far more often than ``alpha``. ``prior_units`` units with the variance common to
    both arms are then added to each arm's own variance where that makes it larger; their weight vanishes as
    the arms grow. `tests/experiments/test_verdict.py` shows the errors without and with them.

    Undefined (all NaN): an arm is empty or has no known variance; for ``relative``, the control's mean is
    zero or not told apart from zero, because the delta method divides by it.

    Raises:
        ValueError: ``alpha`` or ``tuning_n`` out of range.
    """
    if not 0 < alpha < 1 or not tuning_n > 0:
        raise ValueError(f"alpha {alpha}, tuning_n {tuning_n}: give alpha in (0, 1) and tuning_n above 0")
    control_variance, treatment_variance = _variances(control, treatment, proportion, prior_units)
    difference = treatment.mean - control.mean
    spread = control_variance + treatment_variance
    if not math.isfinite(difference) or not math.isfinite(spread) or spread <= 0:
        return UNDEFINED
    if not relative:
        variance = control_variance / control.n + treatment_variance / treatment.n
        return _sequence(difference, variance, control.n + treatment.n, alpha, tuning_n)
    if _is_near_zero(control.mean, control_variance / control.n, alpha):
        return UNDEFINED
    # Delta method for a ratio of independent means.
    variance = (
        control_variance * treatment.mean**2 / control.mean**4 / control.n
        + treatment_variance / control.mean**2 / treatment.n
    )
    lift = difference / abs(control.mean)
    return _sequence(lift, variance, control.n + treatment.n, alpha, tuning_n)


def compare_ratio(
    control: ArmStats,
    treatment: ArmStats,
    *,
    alpha: float = 0.05,
    tuning_n: float,
    proportion: bool = False,
    prior_units: float = 0.0,
) -> Comparison:
    """The treatment's lift over the control by test inversion; it agrees with the plain difference.

    A lift is in the interval as long as the sequence around ``treatment - (1 + lift) * control`` still holds
    zero: Fieller's argument (Supplement to the JRSS 7, 1940) with a confidence sequence in place of Student's
    interval. So zero is outside exactly when :func:`compare` of the plain difference excludes it, which the
    delta method of ``relative`` does not promise when the control's mean is small.

    Undefined (all NaN): an arm is empty or has no known variance; the control's mean is not told apart from
    zero, so that no lift can be excluded.

    Raises:
        ValueError: ``alpha`` or ``tuning_n`` out of range.
    """
    plain = compare(
        control,
        treatment,
        alpha=alpha,
        tuning_n=tuning_n,
        relative=False,
        proportion=proportion,
        prior_units=prior_units,
    )
    if not plain.is_defined:
        return UNDEFINED
    a, b = control.mean, treatment.mean
    spreads = _variances(control, treatment, proportion, prior_units)
    a_variance, b_variance = spreads[0] / control.n, spreads[1] / treatment.n
    # Half-width over standard error: the same for every ratio, since it depends on n alone.
    factor = (plain.high - plain.estimate) ** 2 / (a_variance + b_variance)
    # Ratios r with (b - r a)² <= factor (b_variance + r² a_variance), between the roots of a quadratic.
    leading = a**2 - factor * a_variance
    if leading <= 0:
        return UNDEFINED
    root = math.sqrt(max(0.0, (a * b) ** 2 - leading * (b**2 - factor * b_variance)))
    low, high = (a * b - root) / leading, (a * b + root) / leading
    if a < 0:
        return Comparison((b - a) / -a, 1 - high, 1 - low, plain.p_value)
    return Comparison((b - a) / a, low - 1, high - 1, plain.p_value)


def rho(alpha: float, tuning_n: float) -> float:
    """The mixture's scale that makes the interval tightest at ``tuning_n`` (equation 161 of the paper)."""
    return math.sqrt((-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / tuning_n)


def _variances(a: ArmStats, b: ArmStats, proportion: bool, prior_units: float) -> tuple[float, float]:
    """Variance of one unit's value in each arm, steadied by ``prior_units`` units of the common one."""
    own = a.variance(proportion=proportion), b.variance(proportion=proportion)
    freedom = a.n + b.n - 2
    if not prior_units or freedom <= 0 or not all(map(math.isfinite, own)):
        return own
    common = ((a.n - 1) * own[0] + (b.n - 1) * own[1]) / freedom
    first, second = (
        max(each, (arm.n * each + prior_units * common) / (arm.n + prior_units))
        for each, arm in zip(own, (a, b), strict=True)
    )
    return first, second


def _sequence(estimate: float, variance: float, n: int, alpha: float, tuning_n: float) -> Comparison:
    """Equation 9 of the paper around ``estimate``, whose variance at ``n`` units is ``variance``."""
    scale = rho(alpha, tuning_n)
    spread = n * variance  # s² of the paper: per unit
    grown = n * scale**2 + 1
    half = math.sqrt(spread * 2 * grown * math.log(math.sqrt(grown) / alpha)) / (n * scale)
    if spread == 0:
        return UNDEFINED
    # The same equation solved for alpha at the interval that just touches zero.
    log_p = 0.5 * math.log(grown) - (estimate * n * scale) ** 2 / (2 * spread * grown)
    return Comparison(estimate, estimate - half, estimate + half, min(1.0, math.exp(min(0.0, log_p))))


def _is_near_zero(mean: float, variance: float, alpha: float) -> bool:
    """Whether the mean's plain two-standard-error interval holds zero; then a ratio to it means nothing."""
    return abs(mean) <= 2 * math.sqrt(variance) or mean == 0


def estimate_and_variance(
    control: ArmStats, treatment: ArmStats, *, proportion: bool = False, prior_units: float = 0.0
) -> tuple[float, float]:
    """Treatment minus control, and the variance of that difference; NaN when it cannot be known yet."""
    if not control.n or not treatment.n:
        return math.nan, math.nan
    spreads = _variances(control, treatment, proportion, prior_units)
    return treatment.mean - control.mean, spreads[0] / control.n + spreads[1] / treatment.n


def above_zero_p(estimate: float, variance: float, n: int, *, alpha: float, tuning_n: float) -> float:
    """Anytime-valid p-value of "the truth is at most zero", tightest at ``alpha`` and ``tuning_n`` units.

    The one-sided sequence of the paper (its appendix on one-sided sequences): the lower bound lies
    sqrt(s² 2 (n rho² + 1) / (n rho)² log(1 + sqrt(n rho² + 1) / (2 alpha))) below the estimate, solved here
    for the alpha at which it touches zero. NaN when the variance is not known.
    """
    if not (math.isfinite(estimate) and math.isfinite(variance)) or variance <= 0:
        return math.nan
    if estimate <= 0:
        return 1.0
    scale = rho(min(1.0, 2 * alpha), tuning_n)
    grown = n * scale**2 + 1
    standing = estimate * n * scale
    exponent = standing * standing / (2 * n * variance * grown)
    if not 0 < exponent < 700:
        return 0.0 if exponent else 1.0
    return min(1.0, math.sqrt(grown) / 2 / math.expm1(exponent))
