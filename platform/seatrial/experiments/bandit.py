"""Traffic for reward rather than proof: shares that follow the probability of being best.

Thompson sampling (Thompson, Biometrika 25, 1933; Scott, "A modern Bayesian look at the multi-armed bandit",
2010) in its batched form: the share of an arm is the probability that its mean is the best, here by numerical
integration in place of draws, so that the same evidence always gives the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import special

from seatrial.experiments.policy import Thompson
from seatrial.experiments.sequential import ArmStats

_LEVELS = (np.arange(2048) + 0.5) / 2048


def best_probabilities(
    arms: Mapping[str, ArmStats], *, higher_is_better: bool, binary: bool
) -> dict[str, float]:
    """The probability of each arm to have the best mean; empty while an arm's mean is not known.

    Posteriors are Beta(1 + successes, 1 + failures) where units are zeros and ones, else normal around the
    mean with its standard error.
    """
    spreads = {name: arm.variance(proportion=binary) for name, arm in arms.items()}
    if any(not math.isfinite(spread) or (spread == 0 and not binary) for spread in spreads.values()):
        return {}
    values = {name: _quantiles(arm, spreads[name], binary) for name, arm in arms.items()}
    found = {}
    for name, own in values.items():
        # P(every other one is worse | own value), averaged over the own posterior.
        others = [
            _cdf(own, arms[other], spreads[other], binary, higher_is_better)
            for other in arms
            if other != name
        ]
        found[name] = float(np.mean(np.prod(others, axis=0)))
    total = sum(found.values())
    return {name: share / total for name, share in found.items()} if total > 0 else {}


def wanted_weights(
    plan: Thompson, present: Mapping[str, float], best: Mapping[str, float]
) -> dict[str, float] | None:
    """The shares to go to; None when no share would change by as much as the plan's step.

    Every arm keeps the floor, and the rest is shared out by the probability of being best.
    """
    if set(best) != set(present):
        return None
    floor = min(plan.floor, 1 / len(present))
    rest = 1 - floor * len(present)
    wanted = {name: floor + rest * best[name] for name in present}
    is_worth_it = max(abs(wanted[name] - present[name]) for name in present) >= plan.step
    return wanted if is_worth_it else None


Array = NDArray[np.float64]


def _quantiles(arm: ArmStats, spread: float, binary: bool) -> Array:
    found: Array = (
        special.betaincinv(1 + arm.total, 1 + arm.n - arm.total, _LEVELS)
        if binary
        else arm.mean + math.sqrt(spread / arm.n) * special.ndtri(_LEVELS)
    )
    return found


def _cdf(at: Array, arm: ArmStats, spread: float, binary: bool, is_below: bool) -> Array:
    """P(the arm's mean is below ``at``), or above it."""
    below: Array = (
        special.betainc(1 + arm.total, 1 + arm.n - arm.total, at)
        if binary
        else special.ndtr((at - arm.mean) / math.sqrt(spread / arm.n))
    )
    return below if is_below else 1 - below
