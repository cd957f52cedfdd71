"""When a trial ends, and how.

The order is fixed: sample ratio, guardrails, minimum n, primary metric, deadline. What is missing, old or not
a number never promotes: it waits, and the deadline ends it as inconclusive.

The sample ratio is tested twice, at half its alpha each: of all units, and of those that had an answer or a
failure. The rest left or were refused; where that depends on the arm, the metric compares different users. A
guardrail that is broken goes before the second, since it says more.

Of several challengers each is compared with the champion at alpha over the number that started, so that the
probability of any wrong decision of the metric is at most alpha (Bonferroni). A loser leaves while others go
on; of several winners the larger estimate wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from seatrial.experiments import bandit, group_sequential
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.guardrails import ERRORS, FEWEST_VALUES, errors, watch, why_silent
from seatrial.experiments.judgement import ArmJudgement, Judgement, VerdictName
from seatrial.experiments.metrics import compare_metric, is_binary, stats_by_arm
from seatrial.experiments.policy import BUILT_IN, GroupSequential, Thompson, TrialPolicy
from seatrial.experiments.sequential import (
    PRIOR_UNITS,
    UNDEFINED,
    ArmStats,
    Comparison,
    estimate_and_variance,
)
from seatrial.experiments.srm import sample_ratio_p

__all__ = ["ArmJudgement", "Judgement", "TrialPolicy", "VerdictName", "judge"]

# Older evidence promotes nobody.
STALE_S = 600.0


def judge(
    policy: TrialPolicy,
    shares: Mapping[str, float],
    opened_at: float,
    evidence: Evidence,
    now: float,
    *,
    control: str = "champion",
    started: int | None = None,
    is_reweighted: bool = False,
    hashed: Mapping[str, float] | None = None,
) -> Judgement:
    """Look at a trial whose arms were planned to hold ``shares`` of its units.

    ``started`` is the number of challengers that the trial began with, those here by default. Once weights
    have moved, units came under several splits, and the sample ratio is not tested any more. It is tested
    against ``hashed``, the shares that whole buckets can give, where they are given: with few buckets an
    arm's is not quite what was planned.
    """
    names = tuple(name for name in shares if name != control)
    look = _Look(policy, shares, evidence, now - opened_at, now, control, names, started or len(names))
    found = look.judgement()
    srm_p, mismatch = (1.0, None) if is_reweighted else _mismatch(found, policy, hashed or shares, evidence)
    if mismatch is not None:
        found = replace(found, verdict="invalid", reason=mismatch, arm=None, drop={}, weights=None)
    return replace(found, srm_p=srm_p)


def _mismatch(
    found: Judgement,
    policy: TrialPolicy,
    shares: Mapping[str, float],
    evidence: Evidence,
) -> tuple[float, str | None]:
    """The p-value of all units, and why units do not fit the split."""
    units = [evidence.arm(name).assigned_units for name in shares]
    p = sample_ratio_p(units, list(shares.values()))
    if p <= policy.ratio_alpha:
        return p, f"sample ratio: {_listed(units)} units do not fit the split (p = {p:.2g})"
    rest = {name: share for name, share in shares.items() if name not in found.drop}
    return p, None if found.verdict == "roll_back" else _attrition(policy, rest, evidence)


def _attrition(policy: TrialPolicy, shares: Mapping[str, float], evidence: Evidence) -> str | None:
    """Why the units that had an answer or a failure do not fit the split, if they do not."""
    units = [evidence.arm(name).assigned_units for name in shares]
    lost = [evidence.arm(name).lost_units for name in shares]
    if not any(lost):
        return None
    heard = [each - gone for each, gone in zip(units, lost, strict=True)]
    total = math.fsum(shares.values())
    p = sample_ratio_p(heard, [share / total for share in shares.values()])
    if p > policy.ratio_alpha:
        return None
    told = f"{_listed(lost)} of {_listed(units)} units left without an answer or were refused"
    return f"sample ratio: {told}: {_listed(heard)} do not fit the split (p = {p:.2g})"


def _listed(counts: Sequence[int]) -> str:
    return " and ".join(map(str, counts))


def planned_units(
    shares: Mapping[str, float], evidence: Evidence, *, started: int, control: str = "champion"
) -> int:
    """Exposed units on the scale of a plan for ``started`` challengers that share their part evenly.

    Those of the arms that are left, over the part of the plan that is theirs: the information of each
    comparison grows by them alone, and spending alpha by any other clock would not keep to it.
    """
    part = part_of_plan(shares, started=started, control=control)
    return math.floor(evidence.of(shares).units / part + 1e-6)


def part_of_plan(shares: Mapping[str, float], *, started: int, control: str = "champion") -> float:
    """The share of the trial's units, as it began, that the arms had which are left."""
    challengers = [share for name, share in shares.items() if name != control]
    each = sum(challengers) / len(challengers)
    # Shares of those left sum to 1: whoever left had, on this scale, as much as each of them has.
    return 1 / (1 + (started - len(challengers)) * each)


@dataclass(frozen=True)
class _Look:
    """One look: everything that the rules are applied to."""

    policy: TrialPolicy
    shares: Mapping[str, float]
    evidence: Evidence
    age_s: float
    now: float
    control: str
    challengers: tuple[str, ...]
    started: int
    stats: Mapping[str, ArmStats] = field(init=False)

    def __post_init__(self) -> None:
        primary = self.policy.metric
        object.__setattr__(self, "stats", stats_by_arm(primary, self.live, primary.name))

    @property
    def live(self) -> Evidence:
        """The evidence without the arms that have left."""
        return self.evidence.of(self.shares)

    def judgement(self) -> Judgement:
        """What the guardrails, the metric and the deadline say, in this order."""
        arms = {name: self._arm(name) for name in self.challengers}
        out = {name: why for name, found in arms.items() if (why := self._broken(name, found))}
        rest = [name for name in self.challengers if name not in out]
        waiting = {name: self._waiting_for(name, arms[name]) for name in rest}
        drops = [name for name in rest if waiting[name] is None and self._side(arms[name]) < 0]
        out |= {name: self._told(name, arms[name], "worse") for name in drops}
        wins = [name for name in rest if waiting[name] is None and self._side(arms[name]) > 0]
        is_taken = any(why is None for why in waiting.values())
        look = self.planned_look if is_taken else None
        leader = self._leader(arms, wins or [name for name in rest if name not in out] or list(arms))
        shown = arms[leader]
        found = Judgement(
            None, "", math.nan, shown.failures_p, shown.difference, shown.lift, arms=arms, look=look
        )
        if len(out) == len(arms):
            return replace(found, verdict="roll_back", reason="; ".join(out.values()))
        if wins:
            reason = self._told(leader, shown, "better")
            return replace(found, verdict="promote", reason=reason, arm=leader, drop={})
        told = self._still(leader, shown, waiting[leader])
        return self._at_the_end(replace(found, reason=told, drop=out, weights=self._weights(arms)), leader)

    @property
    def planned_look(self) -> int | None:
        """The number of the planned look that is due now."""
        return len(self.evidence.looks) + 1 if isinstance(self.policy.decision, GroupSequential) else None

    @cached_property
    def planned_units(self) -> int:
        """Exposed units by which planned looks go."""
        return planned_units(self.shares, self.evidence, started=self.started, control=self.control)

    def _at_the_end(self, found: Judgement, leader: str) -> Judgement:
        decision = self.policy.decision
        is_spent = isinstance(decision, GroupSequential) and (
            (found.look or 0) >= decision.looks or len(self.evidence.looks) >= decision.looks
        )
        if is_spent:
            return replace(found, verdict="inconclusive", reason=f"last planned look: {found.reason}")
        if self.age_s < self.policy.deadline_s:
            return found
        hours = f"deadline after {self.policy.deadline_s / 3600:g} h"
        if isinstance(decision, Thompson) and decision.promote_at is not None:
            best = found.arms[leader].best_probability or 0.0
            if self._missing(leader, found.arms[leader]) is None and best >= decision.promote_at:
                reason = f"{hours}: {leader} is best with probability {best:.3f}"
                return replace(found, verdict="promote", reason=reason, arm=leader, drop={}, weights=None)
        return replace(found, verdict="inconclusive", reason=f"{hours}: {found.reason}", weights=None)

    def _arm(self, name: str) -> ArmJudgement:
        a, b = self.evidence.arm(self.control), self.evidence.arm(name)
        difference, lift = self._compared(a, b)
        always = errors(self.policy, b)
        others = (
            watch(each, a, b, stats_by_arm(each.metric, self.live, self.policy.metric.name),
                  self.policy.tuning_units)
            for each in self.policy.guardrails
        )  # fmt: skip
        return ArmJudgement(difference, lift, always.p, (always, *others), self._best.get(name))

    def _compared(self, a: ArmEvidence, b: ArmEvidence) -> tuple[Comparison, Comparison]:
        policy = self.policy
        alpha = policy.shared_alpha(self.started)
        difference, lift = compare_metric(
            policy.metric, a, b, self.stats, alpha=alpha, tuning_n=policy.tuning_units
        )
        plan = policy.decision
        if not isinstance(plan, GroupSequential):
            return difference, lift
        number = len(self.evidence.looks) + 1
        if number > plan.looks or self.planned_units <= max(self.evidence.looks, default=0):
            return UNDEFINED, UNDEFINED
        binary = is_binary(policy.metric, self.stats[a.name], self.stats[b.name])
        estimate, variance = estimate_and_variance(
            self.stats[a.name], self.stats[b.name], proportion=binary, prior_units=PRIOR_UNITS
        )
        at_look = group_sequential.compare_at_look(
            plan, self.evidence.looks, self.planned_units, estimate, variance, alpha
        )
        mean = abs(self.stats[a.name].mean)
        if not at_look.is_defined or not lift.is_defined:
            return at_look, UNDEFINED
        low, high = at_look.low / mean, at_look.high / mean
        relative = Comparison(at_look.estimate / mean, low, high, at_look.p_value)
        return at_look, relative

    @cached_property
    def _best(self) -> Mapping[str, float]:
        """Probabilities of being best, where the trial is for reward."""
        if not isinstance(self.policy.decision, Thompson):
            return {}
        return bandit.best_probabilities(
            self.stats,
            higher_is_better=self.policy.metric.higher_is_better,
            binary=is_binary(self.policy.metric, *self.stats.values()),
        )

    def _weights(self, arms: Mapping[str, ArmJudgement]) -> Mapping[str, float] | None:
        plan = self.policy.decision
        if not isinstance(plan, Thompson):
            return None
        if any(self._missing(name, found) for name, found in arms.items()):
            return None
        return bandit.wanted_weights(plan, self.shares, self._best)

    def _broken(self, name: str, found: ArmJudgement) -> str | None:
        """The guardrail that the challenger breaks, told to a person."""
        broken = next((each for each in found.guardrails if each.breached), None)
        if broken is None:
            return None
        b = self.evidence.arm(name)
        if broken.name == ERRORS:
            counts = f"{b.failures} of {b.requests} requests failed and {b.fallbacks} fell back"
            return f"guardrail: {name}: {counts}: over max_error_share {broken.limit:g}"
        return f"guardrail: {name}: {broken.name} {broken.value:.4g} is beyond {broken.limit:.4g}"

    def _waiting_for(self, name: str, found: ArmJudgement) -> str | None:
        """What must come before the metric may decide on a challenger; None when nothing is missing."""
        missing = self._missing(name, found)
        if missing is not None:
            return missing
        plan = self.policy.decision
        if isinstance(plan, Thompson):
            best = ", ".join(f"{arm} {share:.3f}" for arm, share in self._best.items())
            return f"{self.policy.metric.name}: probability of being best: {best}"
        if isinstance(plan, GroupSequential):
            number = len(self.evidence.looks) + 1
            if number > plan.looks:
                return f"all {plan.looks} planned looks are taken"
            due = math.ceil(group_sequential.due_at(plan, number))
            if self.planned_units < due:
                said = f"look {number} of {plan.looks} at {due} units: {self.planned_units} so far"
                has_left = len(self.evidence.arms) > len(self.shares)
                return f"{said}, by the arms that are left" if has_left else said
        if not found.difference.is_defined:
            return f"{self.policy.metric.name}: no interval from these values"
        return None

    def _missing(self, name: str, found: ArmJudgement) -> str | None:
        policy, evidence = self.policy, self.evidence
        units = evidence.units
        if units < policy.minimum_units:
            return f"{units} of {policy.minimum_units} units"
        if self.age_s < policy.minimum_duration_s:
            return f"the first {policy.minimum_duration_s:g} s are not over"
        fewest = min((self.control, name), key=lambda arm: self.stats[arm].n)
        if self.stats[fewest].n < FEWEST_VALUES:
            return f"{self.stats[fewest].n} of {FEWEST_VALUES} units with a value in the {fewest} arm"
        if self._side(found) <= 0 and not isinstance(policy.decision, Thompson):
            return None
        # What follows keeps back a promotion, and only that.
        old_s = self.now - evidence.taken_at
        if not old_s <= STALE_S:
            return f"the evidence is {old_s:.0f} s old"
        silent = next((arm for arm in (name, self.control) if evidence.arm(arm).outcomes == 0), None)
        if silent and policy.metric.name not in BUILT_IN:
            # Silence may mean zero, as with complaints, or that outcomes are lost: it does not promote.
            return f"no outcome {policy.metric.name} in the {silent} arm"
        mute = {each.name for each in found.guardrails if math.isnan(each.p)}
        silent_rail = next((each for each in policy.guardrails if each.name in mute), None)
        if silent_rail is None:
            return None
        a, b = evidence.arm(self.control), evidence.arm(name)
        return f"guardrail {silent_rail.name}: {why_silent(silent_rail, a, b)}"

    def _side(self, found: ArmJudgement) -> int:
        """1 when the challenger is shown to be better, -1 worse, 0 neither."""
        if not found.difference.is_defined:
            return 0
        sign = 1 if self.policy.metric.higher_is_better else -1
        return sign * ((found.difference.low > 0) - (found.difference.high < 0))

    def _leader(self, arms: Mapping[str, ArmJudgement], names: list[str]) -> str:
        sign = 1 if self.policy.metric.higher_is_better else -1

        def standing(name: str) -> float:
            estimate = sign * arms[name].difference.estimate
            return -math.inf if math.isnan(estimate) else estimate

        return max(names, key=standing)

    def _still(self, name: str, found: ArmJudgement, waiting: str | None) -> str:
        said = waiting or (
            f"{self.policy.metric.name}: the interval {_interval(found.difference)} still holds zero"
        )
        return said if len(self.challengers) == 1 else f"{name}: {said}"

    def _told(self, name: str, found: ArmJudgement, side: str) -> str:
        who = "the challenger" if len(self.challengers) == 1 and self.started == 1 else name
        shown = f"difference {found.difference.estimate:+.4g} in {_interval(found.difference)}"
        return f"{self.policy.metric.name}: {who} is {side}, {shown}"


def _interval(comparison: Comparison) -> str:
    return f"({comparison.low:+.4g}, {comparison.high:+.4g})"
