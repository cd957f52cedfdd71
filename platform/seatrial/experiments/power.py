"""How many units a trial needs to find a lift: looked at all the time, at planned looks, or once.

The probability that a path with drift has left a boundary is integrated numerically from look to look, as in
`group_sequential` (Armitage, McPherson and Rowe 1969); nothing is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scipy import optimize, special

from seatrial.experiments.group_sequential import Walk, z_bounds
from seatrial.experiments.policy import BoundaryName
from seatrial.experiments.sequential import rho

# A trial is taken to be looked at whenever there are so many more units.
GROWTH = 0.02
_MOST_TIMES = 100.0
FEWEST = 2.0


@dataclass(frozen=True)
class Effect:
    """What is to be found: a difference of means, the arms' variances, and the treatment's share of units."""

    difference: float
    control_variance: float
    treatment_variance: float
    share: float

    @property
    def drift(self) -> float:
        """The difference over its standard error at one unit, so that z is this times sqrt(n)."""
        variance = self.control_variance / (1 - self.share) + self.treatment_variance / self.share
        return abs(self.difference) / math.sqrt(variance)


@dataclass(frozen=True)
class Units:
    """Units of all arms: on average until the decision, and at which the planned power is reached."""

    expected: float
    worst: float


def effect_of(baseline: float, lift: float, share: float, sd: float | None) -> Effect:
    """A relative lift over a proportion, or over a mean whose units' standard deviation is ``sd``.

    Raises:
        ValueError: no such lift, or no such proportion.
    """
    if lift == 0 or baseline == 0:
        raise ValueError("lift: 0 cannot be found: give a lift and a baseline other than 0")
    treated = baseline * (1 + lift)
    difference = baseline * lift  # of the two it may be none, as far as rounding lets one see
    if sd is not None:
        if sd**2 == 0:
            raise ValueError(
                f"sd: {sd:g}: too small to be squared: give values and their sd in a larger unit"
            )
        return Effect(difference, sd**2, sd**2, share)
    if not (0 < baseline < 1 and 0 < treated < 1):
        shown = f"{baseline:g} to {treated:g}"
        raise ValueError(f"baseline: {shown}: give shares between 0 and 1, or `--sd` for other means")
    return Effect(difference, baseline * (1 - baseline), treated * (1 - treated), share)


def fixed_units(effect: Effect, alpha: float, power: float) -> float:
    """Units of the two-sided z-test that is looked at once: one in each arm at least."""
    z = float(special.ndtri(power) - special.ndtri(alpha / 2))
    root = z / effect.drift if effect.drift else math.inf
    return max(FEWEST, root * root)


def sequential_units(
    effect: Effect, alpha: float, power: float, *, tuning_n: float, minimum_units: float
) -> Units:
    """Units of the confidence sequence that is looked at all the time from ``minimum_units`` on.

    Raises:
        ValueError: the power is not reached within a hundred times the units of the fixed test, or of the
            first look where that comes later.
    """
    walk, expected, before = Walk(effect.drift), 0.0, 0.0
    first = max(FEWEST, minimum_units)
    for n in _looks(first, _MOST_TIMES * max(first, fixed_units(effect, alpha, power))):
        walk.step(n, sequence_z(n, alpha, tuning_n))
        expected += n * (walk.spent - before)
        before = walk.spent
        if walk.won >= power:
            return Units(expected + n * (1 - walk.spent), n)
    raise ValueError(f"power: {power:g} is out of reach: give a larger lift or alpha")


def sequence_z(n: float, alpha: float, tuning_n: float) -> float:
    """The confidence sequence's half-width in standard errors at ``n`` units: equation 9 of
    arXiv:2103.06476v7."""
    scaled = n * rho(alpha, tuning_n) ** 2
    return math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


def planned_units(effect: Effect, alpha: float, power: float, boundary: BoundaryName, looks: int) -> Units:
    """Units of a trial with ``looks`` even looks."""
    times = tuple((k + 1) / looks for k in range(looks))
    bounds = z_bounds(boundary, looks, times, alpha)

    def walked(drift: float) -> tuple[float, float]:
        walk, expected, before = Walk(drift), 0.0, 0.0
        for time, z in zip(times, bounds, strict=True):
            walk.step(time, z)
            expected += time * (walk.spent - before)
            before = walk.spent
        return walk.won, expected + 1 - walk.spent

    # In units of the last look's time the drift grows with the square root of the units.
    drift = float(optimize.brentq(lambda each: walked(each)[0] - power, 0.1, 20.0, xtol=1e-6))
    worst = max(FEWEST, (drift / effect.drift) ** 2)
    return Units(walked(drift)[1] * worst, worst)


def _looks(first: float, last: float) -> Iterator[float]:
    n = first
    while n <= last:
        yield n
        n *= 1 + GROWTH
