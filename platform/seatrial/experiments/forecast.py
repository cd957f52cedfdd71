"""When a trial can be expected to decide, if what was seen so far goes on."""

from __future__ import annotations

import math

from seatrial.experiments.sequential import Comparison, rho

MOST_UNITS = 1e12


def units_to_decide(difference: Comparison, units: int, alpha: float, tuning_n: float) -> float | None:
    """Units, over both arms, at which the interval would leave zero; None when it never would.

    The half-width of the sequence at n units is f(n) times a spread that is taken to stay as it is; the
    estimate is taken for the truth. `alpha` and `tuning_n` are the comparison's own.
    """
    if not difference.is_defined or units <= 0 or difference.estimate == 0:
        return None
    if not difference.low <= 0 <= difference.high:
        return float(units)
    half = (difference.high - difference.low) / 2
    wanted = abs(difference.estimate) / half * _shape(units, alpha, tuning_n)
    few, many = math.log(units), math.log(MOST_UNITS)
    if _shape(MOST_UNITS, alpha, tuning_n) > wanted:
        return None
    for _ in range(60):
        middle = (few + many) / 2
        few, many = (middle, many) if _shape(math.exp(middle), alpha, tuning_n) > wanted else (few, middle)
    return math.exp(many)


def _shape(n: float, alpha: float, tuning_n: float) -> float:
    """The half-width at ``n`` units over the spread of one unit: equation 9 of arXiv:2103.06476v7."""
    scale = rho(alpha, tuning_n)
    grown = n * scale**2 + 1
    return math.sqrt(2 * grown * math.log(math.sqrt(grown) / alpha)) / (n * scale)
