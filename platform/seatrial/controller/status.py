"""What `/status` says: every service, its replicas, and its latest trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seatrial.controller.loop import Report
from seatrial.experiments.evidence import Evidence, finite
from seatrial.experiments.trial import Trial
from seatrial.experiments.verdict import Judgement
from seatrial.reconcile.closing import look_at, no_evidence
from seatrial.reconcile.world import ServiceState
from seatrial.store import Store


def summary(store: Store, report: Report, now: float) -> dict[str, Any]:
    """The whole page as plain JSON. Trials are shown as the last pass saw them, so that asking costs little.

    Raises:
        RetryableError: the store does not answer.
    """
    rows = store.services()
    services = [_service(store, name, row, report, now) for name, row in rows.items()]
    error = "; ".join(report.errors) or None
    body: dict[str, Any] = finite({"at": now, "leader": report.leader, "error": error, "services": services})
    return body


def _service(store: Store, name: str, row: Mapping[str, Any], report: Report, now: float) -> dict[str, Any]:
    state = ServiceState.from_json(row["state"])
    trial = store.latest_trial(name)
    return {
        "name": name,
        "state": state.phase,
        "message": state.message,
        "observed": bool(row["state"]),
        "config_at": state.config_at,
        "champion": state.served,
        "aliases": dict(report.aliases.get(name, {})),
        "refused": {version: refusal.error for version, refusal in state.refused.items()},
        "replicas": [
            {
                "id": each["replica_id"],
                "revision": each["revision"],
                "loaded": each["loaded"],
                "age_s": round(now - each["at"], 1),
            }
            for each in store.replicas(name)
        ],
        "trial": None if trial is None else _trial(store, trial, report.evidence.get(trial.id), now),
    }


def _trial(store: Store, trial: Trial, seen: Evidence | None, now: float) -> dict[str, Any]:
    decision = store.decision(trial.id)
    if decision is not None:
        evidence, judgement = decision.evidence, decision.judgement
    else:
        evidence = seen or no_evidence(trial, now)
        judgement = look_at(trial, evidence, now)
    waiting = "the aliases and the audit record" if decision is not None else judgement.reason
    return {
        "id": trial.id,
        "state": trial.state,
        "champion": trial.champion,
        "challenger": trial.challenger,
        "opened_at": trial.opened_at,
        "closed_at": trial.closed_at,
        "metric": trial.policy["metric"]["name"],
        "alpha": trial.policy["alpha"],
        # Only once everything that follows from it is done, so that whoever waits for it sees the result.
        "verdict": trial.verdict,
        "reason": trial.reason,
        "waiting_for": None if trial.verdict is not None else waiting,
        **_figures(evidence, judgement),
    }


def _figures(evidence: Evidence, judgement: Judgement) -> dict[str, Any]:
    difference, lift = judgement.difference, judgement.lift
    return {
        "units": evidence.units,
        "exposures": sum(arm.exposures for arm in evidence.arms),
        "outcomes": sum(arm.outcomes for arm in evidence.arms),
        "ignored_outcomes": evidence.ignored_outcomes,
        "srm_p": judgement.srm_p,
        "difference": difference.estimate,
        "difference_interval": [difference.low, difference.high] if difference.is_defined else None,
        "p_value": difference.p_value,
        "lift": lift.estimate,
        "interval": [lift.low, lift.high] if lift.is_defined else None,
        "arms": [
            {
                "name": arm.name,
                "version": arm.version,
                "units": arm.exposed_units,
                "requests": arm.requests,
                "exposures": arm.exposures,
                "outcomes": arm.outcomes,
                "failures": arm.failures,
                "fallbacks": arm.fallbacks,
                "mean": arm.stats.mean,
            }
            for arm in evidence.arms
        ],
    }
