"""When a trial ends, and how.

The order is fixed: sample ratio, guardrails, minimum n, primary metric, deadline. What is missing or not a
number never promotes: it waits, and the deadline ends it as inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from seatrial.experiments.evidence import ArmEvidence, Evidence, finite
from seatrial.experiments.guardrails import share_above_p
from seatrial.experiments.sequential import PRIOR_UNITS, UNDEFINED, Comparison, compare, compare_ratio
from seatrial.experiments.srm import sample_ratio_p

# Units with a value that each arm must have before the metric may decide.
FEWEST_VALUES = 20

VerdictName = Literal["promote", "roll_back", "inconclusive", "invalid", "superseded"]


@dataclass(frozen=True)
class TrialPolicy:
    """The rules of one trial: `trial:` of a service, taken when the trial opened."""

    metric: str
    proportion: bool
    higher_is_better: bool
    missing_counts_zero: bool
    alpha: float
    minimum_units: int
    tuning_units: int
    sample_ratio_alpha: float
    deadline_s: float
    minimum_duration_s: float
    max_error_share: float
    guardrail_alpha: float

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> TrialPolicy:
        """The policy from a `TrialSection` as JSON."""
        metric = section["metric"]
        return cls(
            metric=metric["name"],
            proportion=metric["type"] == "proportion",
            higher_is_better=metric["higher_is_better"],
            missing_counts_zero=metric["missing"] == "zero",
            alpha=section["alpha"],
            minimum_units=section["minimum_units"],
            tuning_units=section["tuning_units"] or section["minimum_units"],
            sample_ratio_alpha=section["sample_ratio_alpha"],
            deadline_s=section["deadline_h"] * 3600,
            minimum_duration_s=section["minimum_duration_s"],
            max_error_share=section["max_error_share"],
            guardrail_alpha=section["guardrail_alpha"],
        )


@dataclass(frozen=True)
class GuardrailResult:
    """One guardrail of one challenger: the ``value`` seen, its ``limit``, and whether ``p`` breaks it."""

    name: str
    value: float
    limit: float
    p: float
    breached: bool


@dataclass(frozen=True)
class ArmJudgement:
    """What one look found of one challenger."""

    difference: Comparison
    lift: Comparison
    failures_p: float
    guardrails: tuple[GuardrailResult, ...] = ()
    best_probability: float | None = None


@dataclass(frozen=True)
class Judgement:
    """One look at a trial. ``verdict`` is None while it goes on; then ``reason`` says what is missing.

    ``difference`` (treatment minus control) decides. ``lift`` is the same relative to the control, for
    reading; its interval leaves zero together with the difference's. It is undefined where the control's
    mean is not told apart from zero, which must not keep a challenger that answers from beating a champion
    that never does.
    """

    verdict: VerdictName | None
    reason: str
    srm_p: float
    failures_p: float
    difference: Comparison
    lift: Comparison
    arm: str | None = None
    """The challenger that won."""
    arms: Mapping[str, ArmJudgement] = field(default_factory=dict)
    drop: Mapping[str, str] = field(default_factory=dict)
    """Challengers that are to be taken out while others go on, and why."""
    weights: Mapping[str, float] | None = None
    """The shares that a bandit wants now."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite become null."""
        result: dict[str, Any] = finite(asdict(self))
        return result

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Judgement:
        """The inverse of :meth:`to_json`."""
        srm_p, failures_p = (_number(value[name]) for name in ("srm_p", "failures_p"))
        difference, lift = (
            Comparison(**{key: _number(each) for key, each in value[name].items()})
            for name in ("difference", "lift")
        )
        return cls(value["verdict"], value["reason"], srm_p, failures_p, difference, lift)


def judge(
    policy: TrialPolicy,
    shares: Mapping[str, float],
    opened_at: float,
    evidence: Evidence,
    now: float,
    *,
    control: str = "champion",
    treatment: str = "challenger",
) -> Judgement:
    """Look at a trial whose arms were planned to hold ``shares`` of its units."""
    a, b = evidence.arm(control), evidence.arm(treatment)
    counts = [evidence.arm(name).assigned_units for name in shares]
    srm_p = sample_ratio_p(counts, list(shares.values()))
    failures_p = share_above_p(b.unanswered, b.assigned_units, policy.max_error_share)
    difference, lift = _compare(a, b, policy)
    verdict, reason = _decide(policy, a, b, srm_p, failures_p, difference, now - opened_at)
    return Judgement(verdict, reason, srm_p, failures_p, difference, lift)


def _decide(
    policy: TrialPolicy,
    a: ArmEvidence,
    b: ArmEvidence,
    srm_p: float,
    failures_p: float,
    difference: Comparison,
    age_s: float,
) -> tuple[VerdictName | None, str]:
    if srm_p <= policy.sample_ratio_alpha:
        counts = f"{a.assigned_units} and {b.assigned_units} units"
        return "invalid", f"sample ratio: {counts} do not fit the split (p = {srm_p:.2g})"
    if failures_p <= policy.guardrail_alpha:
        counts = f"{b.failures} of {b.requests} requests failed and {b.fallbacks} fell back"
        return "roll_back", f"guardrail: {b.name}: {counts}: over max_error_share {policy.max_error_share:g}"
    waiting = _waiting_for(policy, a, b, difference, age_s)
    if waiting is None and difference.low > 0:
        return _won(policy.higher_is_better, policy.metric, difference)
    if waiting is None and difference.high < 0:
        return _won(not policy.higher_is_better, policy.metric, difference)
    waiting = waiting or f"{policy.metric}: the interval {_interval(difference)} still holds zero"
    if age_s >= policy.deadline_s:
        return "inconclusive", f"deadline after {policy.deadline_s / 3600:g} h: {waiting}"
    return None, waiting


def _waiting_for(
    policy: TrialPolicy, a: ArmEvidence, b: ArmEvidence, difference: Comparison, age_s: float
) -> str | None:
    """What must come before the metric may decide; None when nothing is missing."""
    units = a.exposed_units + b.exposed_units
    if units < policy.minimum_units:
        return f"{units} of {policy.minimum_units} units"
    if age_s < policy.minimum_duration_s:
        return f"the first {policy.minimum_duration_s:g} s are not over"
    fewest = min(a, b, key=lambda arm: arm.stats.n)
    if fewest.stats.n < FEWEST_VALUES:
        return f"{fewest.stats.n} of {FEWEST_VALUES} units with a value in the {fewest.name} arm"
    is_better = difference.low > 0 if policy.higher_is_better else difference.high < 0
    silent = next((arm.name for arm in (b, a) if arm.outcomes == 0), None)
    if is_better and silent:
        # Silence may mean zero, as with complaints, or that outcomes are lost: it does not promote.
        return f"no outcome {policy.metric} in the {silent} arm"
    return None if difference.is_defined else f"{policy.metric}: no interval from these values"


def _won(is_promotion: bool, metric: str, difference: Comparison) -> tuple[VerdictName, str]:
    side = "better" if is_promotion else "worse"
    shown = f"difference {difference.estimate:+.4g} in {_interval(difference)}"
    return ("promote" if is_promotion else "roll_back"), f"{metric}: the challenger is {side}, {shown}"


def _compare(a: ArmEvidence, b: ArmEvidence, policy: TrialPolicy) -> tuple[Comparison, Comparison]:
    """Difference and lift."""
    if not all(map(math.isfinite, (a.stats.total, b.stats.total))):
        return UNDEFINED, UNDEFINED
    # Units with several requests hold shares between 0 and 1, which vary less than p (1 - p).
    is_binary = all(math.isclose(arm.stats.total, arm.stats.total_squares) for arm in (a, b))
    settings: dict[str, Any] = {
        "alpha": policy.alpha,
        "tuning_n": policy.tuning_units,
        "proportion": policy.proportion and is_binary,
        "prior_units": PRIOR_UNITS,
    }
    difference = compare(a.stats, b.stats, relative=False, **settings)
    return difference, compare_ratio(a.stats, b.stats, **settings)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _interval(comparison: Comparison) -> str:
    return f"({comparison.low:+.4g}, {comparison.high:+.4g})"
