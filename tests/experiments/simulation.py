"""Many trials at once: values are drawn in arrays, looks are sums, verdicts are real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from seatrial.config.trial import TrialSection
from seatrial.experiments.evidence import ArmEvidence, Evidence, Moments
from seatrial.experiments.group_sequential import Walk, due_at
from seatrial.experiments.policy import BoundaryName, GroupSequential, TrialPolicy
from seatrial.experiments.sequential import PRIOR_UNITS, ArmStats, estimate_and_variance
from seatrial.experiments.verdict import judge, planned_units

Draw = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From the arm of each unit (trials, units), its values x and y of the same shape."""
BATCH = 100


@dataclass(frozen=True)
class Case:
    """One kind of trial. ``shares`` are the arms', the champion's first."""

    name: str
    draw: Draw
    section: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[float] = (0.5, 0.5)
    units: int = 4000
    every: float = 0.02
    """Growth between looks; at least 20 units."""
    hopeless: frozenset[str] = frozenset()
    """Challengers that are really worse: when one leaves the others go on, at their part of alpha."""

    @property
    def policy(self) -> TrialPolicy:
        """The rules, as a service file gives them."""
        return TrialPolicy.from_json(TrialSection.model_validate(dict(self.section)).model_dump(mode="json"))

    @property
    def arms(self) -> dict[str, float]:
        """Name → share."""
        names = ["champion", "challenger", *(f"challenger-{letter}" for letter in "bcdef")]
        return dict(zip(names, self.shares, strict=False))


@dataclass(frozen=True)
class Ended:
    """How one trial ended, after how many units, and whether a z-test under the same looks had cried."""

    verdict: str | None
    units: int
    naive: bool
    arm: str | None = None


def looks(case: Case) -> list[int]:
    """Units at which the trial is looked at: as they come in, or at the planned looks.

    When those fall due is not known beforehand where an arm may leave: then it is looked every 20 units.
    """
    plan = case.policy.decision
    if isinstance(plan, GroupSequential) and case.hopeless:
        return list(range(20, math.ceil(1.1 * plan.units), 20))
    if isinstance(plan, GroupSequential):
        return [math.ceil(plan.units * (k + 1) / plan.looks) for k in range(plan.looks)]
    found, n = [], case.policy.minimum_units
    while n <= case.units:
        found.append(n)
        n = max(n + 20, math.ceil(n * (1 + case.every)))
    return found


def run(case: Case, trials: int, seed: int = 2024) -> Iterator[Ended]:
    """Each trial's end. A trial that is undecided at its last look has the verdict None or inconclusive."""
    random, at = np.random.default_rng(seed), looks(case)
    edges = np.cumsum(case.shares)
    for begin in range(0, trials, BATCH):
        shape = (min(BATCH, trials - begin), at[-1])
        arm = np.minimum(np.searchsorted(edges, random.random(shape)), len(edges) - 1)
        x, y = case.draw(random, arm)
        terms = (np.ones(shape), x, x * x, y, y * y, x * y)
        # (arms, 6 sums, trials, looks)
        sums = np.stack([
            [np.add.reduceat(np.where(arm == each, term, 0.0), [0, *at[:-1]], axis=1) for term in terms]
            for each in range(len(edges))
        ]).cumsum(axis=-1)  # fmt: skip
        for trial in range(shape[0]):
            yield _ended(case, at, sums[:, :, trial])


def _ended(case: Case, at: Sequence[int], sums: np.ndarray) -> Ended:
    policy, shares, started = case.policy, case.arms, len(case.shares) - 1
    taken: list[int] = []
    until = dict.fromkeys(shares, len(at))  # the look at which an arm left; nobody joins it afterwards
    equal = [each for each, name in enumerate(shares) if name not in case.hopeless]
    naive = bool(_naive(sums[equal], policy.metric.type))
    for look, units in enumerate(at):
        seen = {name: sums[each, :, min(look, until[name])] for each, name in enumerate(case.arms)}
        arms = tuple(_arm(name, policy, found) for name, found in seen.items())
        evidence = Evidence(1.0, arms, looks=tuple(taken))
        if case.hopeless and not _is_due(policy, planned_units(shares, evidence, started=started), taken):
            continue
        found = judge(policy, shares, 0.0, evidence, 1.0, started=started)
        if found.verdict is not None:
            return Ended(found.verdict, units, naive, found.arm)
        if wrong := found.drop.keys() - case.hopeless:
            return Ended("drop", units, naive, min(wrong))
        if found.look is not None:
            taken.append(planned_units(shares, evidence, started=started))
        if found.drop:
            until |= dict.fromkeys(found.drop, look)
            rest = {name: share for name, share in shares.items() if name not in found.drop}
            shares = {name: share / sum(rest.values()) for name, share in rest.items()}
    return Ended(None, at[-1], naive)


def _is_due(policy: TrialPolicy, units: int, taken: Sequence[int]) -> bool:
    """Whether a planned look is; in between `judge` decides nothing and would only cost time."""
    plan = policy.decision
    return not isinstance(plan, GroupSequential) or units >= due_at(plan, len(taken) + 1)


def spent_after_drop(boundary: BoundaryName, shares: Sequence[float], left: int) -> float:
    """Alpha that a challenger's comparison spends in 5 looks, where the other one leaves at look ``left``.

    The bounds are those that `judge` uses, the walk goes by the information that is really there.
    """
    plan = GroupSequential(boundary, 5, 4000)
    section = TrialSection.model_validate({"decision": {"type": "group_sequential", **asdict(plan)}})
    policy = TrialPolicy.from_json(section.model_dump(mode="json"))
    arms = dict(zip(("champion", "challenger", "challenger-b"), shares, strict=True))
    walk, taken = Walk(), []
    for number in range(1, plan.looks + 1):
        now = dict(arms)
        if number > left:
            del now["challenger-b"]
        rest = {name: share / sum(now.values()) for name, share in now.items()}
        due = {name: plan.units * share * min(number, number if name in now else left) / plan.looks
               for name, share in arms.items()}  # fmt: skip
        evidence = Evidence(1.0, tuple(_arm(name, policy, np.array([n, 0.3 * n, 0.3 * n, 0, 0, 0]))
                                       for name, n in due.items()), looks=tuple(taken))  # fmt: skip
        found = judge(policy, rest, 0.0, evidence, 1.0, started=2)
        assert found.look == number, found.reason
        taken.append(planned_units(rest, evidence, started=2))
        a, b = evidence.arm("champion").stats, evidence.arm("challenger").stats
        _, variance = estimate_and_variance(a, b, proportion=True, prior_units=PRIOR_UNITS)
        difference = found.arms["challenger"].difference
        walk.step(1 / variance, (difference.high - difference.low) / 2 / math.sqrt(variance))
    return walk.spent


def _arm(name: str, policy: TrialPolicy, sums: np.ndarray) -> ArmEvidence:
    n, x, xx, y, yy, xy = (float(each) for each in sums)
    count = int(n)
    moments = {policy.metric.name: Moments(count, x, xx, y, yy, xy)}
    stats = ArmStats(count, x, xx)
    return ArmEvidence(name, name, count, count, count, count, 0, 0, count, stats, 0.0, moments)


def _naive(sums: np.ndarray, kind: str) -> bool:
    """Whether a plain z-test at 1.96 leaves zero at any of the looks, of any arm against the first."""
    n, x, xx, y, yy, xy = sums.transpose(1, 0, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "ratio":
            mean = x / y
            spread = (xx - 2 * mean * xy + mean**2 * yy) / (y / n) ** 2 / n**2
        else:
            mean = x / n
            spread = (xx - x * x / n) / (n - 1) / n
        z = np.abs(mean[1:] - mean[0]) / np.sqrt(spread[1:] + spread[0])
    return bool(np.any(z > 1.959964))


def share_of(rate: float, *lifts: float) -> Draw:
    """Zeros and ones; the challengers' rates are higher by their ``lifts``, relative."""

    def draw(random: np.random.Generator, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rates = rate * (1 + np.array([0.0, *lifts, *[0.0] * 6]))
        return (random.random(arm.shape) < rates[arm]).astype(float), np.zeros(arm.shape)

    return draw


def skewed(sigma: float) -> Draw:
    """Lognormal values."""

    def draw(random: np.random.Generator, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.exp(sigma * random.standard_normal(arm.shape)), np.zeros(arm.shape)

    return draw


def ratio(random: np.random.Generator, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clicks over requests: units differ in how many they send and in how often they click."""
    requests = 1 + random.poisson(3, arm.shape)
    return random.binomial(requests, random.beta(2, 5, arm.shape)).astype(float), requests.astype(float)


def with_history(correlation: float, lift: float = 0.0) -> Draw:
    """Normal values with a covariate from before; the challenger's mean is higher by ``lift`` of one sd."""

    def draw(random: np.random.Generator, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = random.standard_normal(arm.shape)
        noise = math.sqrt(1 - correlation**2) * random.standard_normal(arm.shape)
        return 5 + correlation * y + noise + lift * (arm == 1), 5 + y

    return draw
