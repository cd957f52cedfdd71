"""Quantiles of units' values from histograms, so that anybody may look at any time.

Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm
identification" (Bernoulli 28, 2022, arXiv:1906.09712): the units at or below the true quantile are a count of
successes with a known probability, so a time-uniform bound on that count is one on the quantile (their
section 3, the beta-binomial mixture). The bound is :func:`share_above_p`, which holds at every n and not only
as n grows; each arm gets half of alpha, each side a quarter. Buckets are 2 % wide and every end is rounded
outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import accumulate

from seatrial.experiments.evidence import GAMMA, MIN_BUCKET
from seatrial.experiments.sequential import UNDEFINED, Comparison
from seatrial.experiments.shares import share_above_p

Histogram = Mapping[int, int]


def quantile(histogram: Histogram, level: float) -> float:
    """The quantile as the upper edge of its bucket; NaN without units."""
    n = sum(histogram.values())
    return _edge(_at(histogram, math.ceil(level * n))) if n else math.nan


def bounds(histogram: Histogram, level: float, alpha: float) -> tuple[float, float]:
    """A lower and an upper bound on the quantile, each of which ever fails with probability ``alpha``."""
    n = sum(histogram.values())
    most = _too_many(n, level, alpha)
    # The quantile lies above a value when significantly more than 1 - level of the units do.
    least = n - _too_many(n, 1 - level, alpha)
    low = _edge(_at(histogram, least + 1) - 1) if least >= 0 and n else 0.0
    high = _edge(_at(histogram, most)) if most <= n else math.inf
    return max(0.0, low), high


def compare_quantiles(
    control: Histogram, treatment: Histogram, level: float, alpha: float
) -> tuple[Comparison, Comparison]:
    """Difference of the quantiles and its lift; undefined while a bound is still infinite."""
    a, b = quantile(control, level), quantile(treatment, level)
    (a_low, a_high), (b_low, b_high) = (bounds(each, level, alpha / 4) for each in (control, treatment))
    if not (math.isfinite(a_high) and math.isfinite(b_high)) or math.isnan(a) or math.isnan(b):
        return UNDEFINED, UNDEFINED
    p = _smallest_alpha(control, treatment, level)
    difference = Comparison(b - a, b_low - a_high, b_high - a_low, p)
    if a_low <= 0 or a <= 0:
        return difference, UNDEFINED
    return difference, Comparison(b / a - 1, b_low / a_high - 1, b_high / a_low - 1, p)


def above_limit_p(histogram: Histogram, level: float, limit: float) -> float:
    """Anytime-valid p-value of "the quantile is at most ``limit``"; 1 without units."""
    above = sum(units for at, units in histogram.items() if _edge(at - 1) >= limit and at != MIN_BUCKET)
    return share_above_p(above, sum(histogram.values()), 1 - level)


def below_limit_p(histogram: Histogram, level: float, limit: float) -> float:
    """Anytime-valid p-value of "the quantile is at least ``limit``"; 1 without units."""
    below = sum(units for at, units in histogram.items() if _edge(at) < limit)
    return share_above_p(below, sum(histogram.values()), level)


def above_factor_p(control: Histogram, treatment: Histogram, level: float, factor: float) -> float:
    """Anytime-valid p-value of "the treatment's quantile is at most ``factor`` times the control's"."""

    def is_above(alpha: float) -> bool:
        return bounds(treatment, level, alpha / 2)[0] > factor * bounds(control, level, alpha / 2)[1]

    return _bisected(is_above)


def _smallest_alpha(control: Histogram, treatment: Histogram, level: float) -> float:
    def leaves_zero(alpha: float) -> bool:
        (a_low, a_high), (b_low, b_high) = (bounds(each, level, alpha / 4) for each in (control, treatment))
        return b_low > a_high or a_low > b_high

    return _bisected(leaves_zero)


def _bisected(holds: Callable[[float], bool]) -> float:
    """The least alpha at which ``holds``, to 1 %; 1 when it does not below 1."""
    if not holds(0.999):
        return 1.0
    low, high = math.log(1e-12), 0.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _at(histogram: Histogram, rank: int) -> int:
    """The bucket of the unit with the ``rank``-th smallest value, from 1."""
    buckets = sorted(histogram)
    for at, reached in zip(buckets, accumulate(histogram[each] for each in buckets), strict=True):
        if reached >= rank:
            return at
    return buckets[-1]


def _edge(at: int) -> float:
    """Upper edge of a bucket."""
    return GAMMA**at if at > MIN_BUCKET // 2 else 0.0


@lru_cache(maxsize=4096)
def _too_many(n: int, share: float, alpha: float) -> int:
    """The least count of ``n`` that shows a share above ``share``; n + 1 when none does."""
    if n == 0 or share_above_p(n, n, share) > alpha:
        return n + 1
    low, high = math.floor(share * n), n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share_above_p(middle, n, share) <= alpha else (middle, high)
    return high
