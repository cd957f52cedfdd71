"""What a person is told of one trial, as plain JSON: the same in the command line, pages and `/status`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seatrial.controller.loop import Report
from seatrial.experiments.evidence import ArmEvidence, Evidence, finite
from seatrial.experiments.forecast import units_to_decide
from seatrial.experiments.guardrails import why_silent
from seatrial.experiments.policy import GroupSequential, Thompson, TrialPolicy
from seatrial.experiments.ramp import coverages
from seatrial.experiments.sequential import Comparison
from seatrial.experiments.trial import CHAMPION, Decision, Trial, look_at, units_to_last_look
from seatrial.experiments.verdict import ArmJudgement, Judgement
from seatrial.reconcile.closing import no_evidence
from seatrial.store import Store


def reported(store: Store, seen: Report, trial: Trial, now: float) -> dict[str, Any]:
    """The report of a trial as the store and the controller's last pass know it.

    Raises:
        RetryableError: the store does not answer.
    """
    return report(trial, store.decision(trial.id), seen.evidence.get(trial.id), now)


def report(trial: Trial, decision: Decision | None, seen: Evidence | None, now: float) -> dict[str, Any]:
    """The trial with its arms, estimates, guardrails, and the verdict or what it waits for.

    ``seen`` is the evidence of the last pass; a decided trial is shown as it was decided.
    """
    if decision is not None:
        evidence, judgement = decision.evidence, decision.judgement
    else:
        evidence = seen or no_evidence(trial, now)
        judgement = look_at(trial, evidence, now)
    policy = TrialPolicy.from_json(trial.policy)
    waiting = "the aliases and the audit record" if decision is not None else judgement.reason
    body = {
        "id": trial.id,
        "service": trial.service,
        "number": trial.number,
        "state": trial.state,
        "champion": trial.champion,
        "challenger": trial.challenger,
        "challengers": dict(trial.challengers),
        "dropped": dict(trial.dropped),
        "opened_at": trial.opened_at,
        "closed_at": trial.closed_at,
        "metric": trial.policy["metric"]["name"],
        "policy": dict(trial.policy),
        "alpha": trial.policy["alpha"],
        "ratio_alpha": policy.ratio_alpha,
        "interval_kind": policy.interval(len(trial.challengers)),
        # Only once everything that follows from it is done, so that whoever waits for it sees the result.
        "verdict": trial.verdict,
        "reason": trial.reason,
        "winner": decision.arm if decision is not None and decision.verdict == "promote" else None,
        "actor": decision.actor if decision is not None else None,
        "decided_at": decision.decided_at if decision is not None else None,
        "waiting_for": None if trial.verdict is not None else waiting,
        "ramp": _ramp(trial),
        "expected": None if decision is not None else _expected(trial, evidence, judgement, now),
        **_totals(evidence, judgement),
        "arms": [_arm(arm, trial, judgement, evidence) for arm in evidence.arms],
    }
    found: dict[str, Any] = finite(body)
    return found


def _totals(evidence: Evidence, judgement: Judgement) -> dict[str, Any]:
    return {
        "units": evidence.units,
        "exposures": sum(arm.exposures for arm in evidence.arms),
        "outcomes": sum(arm.outcomes for arm in evidence.arms),
        "ignored_outcomes": evidence.ignored_outcomes,
        "late_outcomes": evidence.late_outcomes,
        "early_outcomes": evidence.early_outcomes,
        "srm_p": judgement.srm_p,
        **_estimates(judgement.difference, judgement.lift),
    }


def _estimates(difference: Comparison, lift: Comparison) -> dict[str, Any]:
    return {
        "difference": difference.estimate,
        "difference_interval": [difference.low, difference.high] if difference.is_defined else None,
        "p_value": difference.p_value,
        "lift": lift.estimate,
        "interval": [lift.low, lift.high] if lift.is_defined else None,
    }


def _arm(arm: ArmEvidence, trial: Trial, judgement: Judgement, evidence: Evidence) -> dict[str, Any]:
    weights = {each.name: each.weight for each in trial.table.arms}
    about: dict[str, Any] = {}
    found = judgements(trial, judgement).get(arm.name)
    if found is not None:
        rules = {each.name: each for each in TrialPolicy.from_json(trial.policy).guardrails}
        about = {
            **_estimates(found.difference, found.lift),
            "failures_p": found.failures_p,
            "best_probability": found.best_probability,
            "guardrails": [
                {
                    "name": each.name,
                    "value": each.value,
                    "limit": each.limit,
                    "p": each.p,
                    "breached": each.breached,
                    "silent": why_silent(rules[each.name], evidence.arm(CHAMPION), arm)
                    if math.isnan(each.p) and each.name in rules
                    else None,
                }
                for each in found.guardrails
            ],
        }
    return {
        "name": arm.name,
        "version": arm.version,
        "weight": weights.get(arm.name),
        "dropped": trial.dropped.get(arm.name),
        "units": arm.exposed_units,
        "requests": arm.requests,
        "exposures": arm.exposures,
        "outcomes": arm.outcomes,
        "failures": arm.failures,
        "fallbacks": arm.fallbacks,
        "unanswered": arm.unanswered / arm.assigned_units if arm.assigned_units else None,
        "mean": arm.stats.mean,
        **about,
    }


def judgements(trial: Trial, judgement: Judgement) -> Mapping[str, ArmJudgement]:
    """What was found of each challenger; older records speak of the only one without its name."""
    if judgement.arms or len(trial.challengers) != 1:
        return judgement.arms
    only = next(iter(trial.challengers))
    return {only: ArmJudgement(judgement.difference, judgement.lift, judgement.failures_p, (), None)}


def _ramp(trial: Trial) -> dict[str, Any] | None:
    """Steps as challengers' shares of all traffic, the share now, and when the next step may come."""
    share = trial.policy["challenger_share"]
    steps = [coverage * share for coverage in coverages(trial.policy)]
    if len(steps) < 2:
        return None
    # What a bandit has moved, and what those who were dropped have left, is no longer the policy's share.
    live = {arm.name for arm in trial.table.arms} - {CHAMPION}
    now = sum(end - start for start, end, name in trial.table.spans if name in live)
    return {"steps": steps, "share": now, "next_at": trial.ramped_at + trial.policy["ramp"]["hold_s"]}


def _expected(trial: Trial, evidence: Evidence, judgement: Judgement, now: float) -> dict[str, Any] | None:
    """Units, and seconds from now, until the metric decides if all goes on as so far."""
    policy = trial.policy
    age_s = now - trial.opened_at
    units = _units_to_decide(trial, evidence, judgement)
    if units is None or age_s <= 0 or evidence.units == 0:
        return None
    units = max(units, float(policy["minimum_units"]))
    left_s = max(0.0, units - evidence.units) / (evidence.units / age_s)
    left_s = max(left_s, policy["minimum_duration_s"] - age_s)
    deadline_s = policy["deadline_h"] * 3600 - age_s
    return {"units": round(units), "in_s": left_s, "before_deadline": left_s <= deadline_s}


def _units_to_decide(trial: Trial, evidence: Evidence, judgement: Judgement) -> float | None:
    """By the first challenger that decides; planned looks end at the last one, a bandit at its deadline."""
    policy = TrialPolicy.from_json(trial.policy)
    if isinstance(policy.decision, GroupSequential):
        return units_to_last_look(trial, evidence, policy.decision.units)
    if isinstance(policy.decision, Thompson):
        return None
    alpha = policy.shared_alpha(len(trial.challengers))
    found = (
        units_to_decide(each.difference, evidence.units, alpha, policy.tuning_units)
        for each in judgements(trial, judgement).values()
    )
    return min((units for units in found if units is not None), default=None)
