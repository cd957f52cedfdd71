"""Planned looks: how far the standardised difference must go at each so that all together err with alpha.

Armitage, McPherson and Rowe, "Repeated significance tests on accumulating data" (JRSS A 132, 1969): the
density of the sum that has not crossed yet is carried from look to look by numerical integration. Boundaries:
Pocock (Biometrika 64, 1977), O'Brien and Fleming (Biometrics 35, 1979), and alpha-spending of either shape by
Lan and DeMets (Biometrika 70, 1983, equations 3 and 4). Looks that come at other times than planned spend
what the plan spends at that look (Slud and Wei, JASA 77, 1982), whatever the increments of information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from seatrial.experiments.policy import BoundaryName, GroupSequential
from seatrial.experiments.sequential import UNDEFINED, Comparison

Array = NDArray[np.float64]
_FEWEST_NODES = 64
_HIGHEST_Z = 12.0
_FARTHEST_Z = 8.5  # beyond it on either side: 2e-17
_GRID = 0.02


def constant(boundary: BoundaryName, looks: int, alpha: float) -> float:
    """The final z of ``looks`` even looks, by which Pocock's and O'Brien and Fleming's tables go."""
    times = tuple((k + 1) / looks for k in range(looks))
    return z_bounds(boundary, looks, times, alpha)[-1]


@lru_cache(maxsize=4096)
def z_bounds(boundary: BoundaryName, looks: int, times: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """The bound on |z| at each of the looks taken at ``times``, shares of the planned units.

    The last planned look spends what is left. One that comes at 1 or later before it does so too.

    Raises:
        ValueError: more times than planned looks, times that do not grow, or alpha out of range.
    """
    if len(times) > looks:
        raise ValueError(f"looks: {len(times)} taken of {looks} planned: plan more looks before the trial")
    if not 0 < alpha < 1 or any(b <= a for a, b in zip((0.0, *times), times, strict=False)):
        raise ValueError(f"times {times}, alpha {alpha}: give growing times above 0 and alpha in (0, 1)")
    found: list[float] = []
    walk = Walk()
    for number, time in enumerate(times, start=1):
        if found:  # the last look's density is never needed, and is the dearest right after another look
            walk.step(times[number - 2], found[-1])
        is_last = number == looks or time >= 1.0
        spent = alpha if is_last else _spent(boundary, looks, number, time, alpha)
        found.append(walk.bound_for(time, spent))
    return tuple(found)


def due_at(plan: GroupSequential, number: int) -> float:
    """Exposed units at which planned look ``number``, from 1, is to be taken."""
    return plan.units * number / plan.looks


def compare_at_look(
    plan: GroupSequential, taken: Sequence[int], units: int, estimate: float, variance: float, alpha: float
) -> Comparison:
    """The difference with its repeated confidence interval at a look at ``units`` after those ``taken``.

    The interval holds at all planned looks together, and the p-value is the least alpha whose interval leaves
    zero (Jennison and Turnbull, JRSS B 51, 1989).

    Raises:
        ValueError: the looks exceed the plan.
    """
    times = tuple(each / plan.units for each in (*taken, units))
    z_bound = z_bounds(plan.boundary, plan.looks, times, alpha)[-1]
    if not (math.isfinite(estimate) and math.isfinite(variance)) or variance <= 0:
        return UNDEFINED
    half = z_bound * math.sqrt(variance)
    p = _repeated_p(plan, times, abs(estimate) / math.sqrt(variance))
    return Comparison(estimate, estimate - half, estimate + half, p)


def _repeated_p(plan: GroupSequential, times: tuple[float, ...], z: float) -> float:
    """The least alpha that reaches ``z``, on a grid of 2 %, so that bounds once computed serve again."""
    few, many = math.floor(math.log(1e-10) / _GRID), 0
    while many - few > 1:
        middle = (few + many) // 2
        bound = z_bounds(plan.boundary, plan.looks, times, math.exp(middle * _GRID))[-1]
        few, many = (few, middle) if bound <= z else (middle, many)
    return math.exp(many * _GRID)


def _spent(boundary: BoundaryName, looks: int, number: int, time: float, alpha: float) -> float:
    """Alpha that may have been spent by look ``number`` at ``time``."""
    if boundary == "lan_demets_pocock":
        return alpha * math.log(1 + (math.e - 1) * time)
    if boundary == "lan_demets_obrien_fleming":
        # Their one-sided function at alpha / 2 for each side, as published tables have it.
        return float(4 * special.ndtr(special.ndtri(alpha / 4) / math.sqrt(time)))
    return _planned(boundary, looks, alpha)[number - 1]


@lru_cache(maxsize=1024)
def _planned(boundary: BoundaryName, looks: int, alpha: float) -> tuple[float, ...]:
    """Alpha that is spent by each of ``looks`` even looks whose bounds have the boundary's shape."""
    times = [(k + 1) / looks for k in range(looks)]
    power = 0.5 if boundary == "obrien_fleming" else 0.0

    def spending(c: float) -> tuple[float, ...]:
        walk, found = Walk(), []
        for time in times:
            walk.step(time, c * (1 / time) ** power)
            found.append(walk.spent)
        return tuple(found)

    c = optimize.brentq(lambda c: spending(c)[-1] - alpha, 0.0, _HIGHEST_Z, xtol=1e-7)
    return spending(c)


class Walk:
    """Brownian motion that has stayed within its bounds: its density at nodes, and what has left them.

    ``drift`` is per unit of time. ``spent`` has left on either side, ``won`` above.
    """

    def __init__(self, drift: float = 0.0) -> None:
        self.drift = drift
        self.won = 0.0
        self.time = 0.0
        self.spent = 0.0
        self.nodes: Array = np.zeros(1)
        self.mass: Array = np.ones(1)  # (nodes,) density times quadrature weight

    def crossing(self, time: float, z: float) -> float:
        """Probability to be beyond ``z`` at ``time`` for the first time."""
        return sum(self._tails(time, z))

    def _tails(self, time: float, z: float) -> tuple[float, float]:
        """Probabilities to be above ``z`` and below ``-z`` for the first time."""
        spread, edge = math.sqrt(time - self.time), z * math.sqrt(time)
        at = self.nodes + self.drift * (time - self.time)
        above, below = special.ndtr((at - edge) / spread), special.ndtr((-at - edge) / spread)
        return float(self.mass @ above), float(self.mass @ below)

    def bound_for(self, time: float, spent: float) -> float:
        """The z at ``time`` with which ``spent`` will have been spent."""
        wanted = spent - self.spent
        if wanted <= 1e-14:
            return _HIGHEST_Z
        if self.crossing(time, 0.0) <= wanted:
            return 0.0
        found: float = optimize.brentq(
            lambda z: self.crossing(time, z) - wanted, 0.0, _HIGHEST_Z, xtol=1e-9, rtol=1e-12
        )
        return found

    def step(self, time: float, z: float) -> None:
        """Go on to ``time`` within ``z``."""
        above, below = self._tails(time, z)
        self.won += above
        self.spent += above + below
        spread = math.sqrt(time - self.time)
        # Nearly all paths lie nearer to their mean than a bound that is far off, and only they need nodes.
        edge = min(z * math.sqrt(time), abs(self.drift) * time + _FARTHEST_Z * math.sqrt(time))
        # Kernels as narrow as the step must be resolved: some nodes for each of their widths.
        wanted = min(2048, max(_FEWEST_NODES, math.ceil(8 * edge / spread)))
        count = 1 << (wanted - 1).bit_length()
        unit, weights = _legendre(count)
        nodes = edge * unit
        moved = self.nodes + self.drift * (time - self.time)
        kernel = np.exp(-0.5 * ((nodes[:, None] - moved[None, :]) / spread) ** 2)
        density = kernel @ self.mass / (spread * math.sqrt(2 * math.pi))
        self.nodes, self.mass, self.time = nodes, density * weights * edge, time


@lru_cache(maxsize=256)
def _legendre(count: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes, weights
