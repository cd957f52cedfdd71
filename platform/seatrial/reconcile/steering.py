"""What changes while a trial runs: its coverage grows, losing challengers leave, a bandit moves weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from seatrial.experiments.evidence import Evidence
from seatrial.experiments.ramp import next_coverage
from seatrial.experiments.reassignment import drop, reweight, with_coverage
from seatrial.experiments.trial import Trial
from seatrial.experiments.verdict import Judgement
from seatrial.reconcile.actions import Action, MarkStep, MoveAlias, TagVersion
from seatrial.reconcile.view import View


def steer(view: View, trial: Trial, evidence: Evidence, judgement: Judgement) -> Trial | None:
    """The trial with the shares that the look asks for, None to let it be.

    Nothing is done before the replicas have the table that they were told.
    """
    if not _is_told(view, trial):
        return None
    table = trial.table
    live = evidence.of(arm.name for arm in table.arms)
    wider = next_coverage(trial.policy, table.coverage, trial.ramped_at, live, view.now)
    if wider is not None:
        return replace(trial, table=with_coverage(table, wider), ramped_at=view.now)
    if judgement.weights is not None:
        return replace(trial, table=reweight(table, judgement.weights))
    return None


def without(trial: Trial, out: Mapping[str, str]) -> Trial | None:
    """The trial without challengers that are out, and why; None where none is, or none would stay."""
    table = trial.table
    if not 0 < len(out) < len(table.arms) - 1:
        return None
    for arm in out:
        table = drop(table, arm)
    return replace(trial, table=table, dropped={**trial.dropped, **out})


def unloadable(view: View, trial: Trial) -> dict[str, str]:
    """Challengers still in the trial that a replica cannot load, and why."""
    found = {
        arm.name: (arm.version, view.error(arm.version))
        for arm in trial.table.arms
        if arm.name in trial.challengers
    }
    return {
        name: f"version {version} cannot be loaded: {error}"
        for name, (version, error) in found.items()
        if error
    }


def take_aliases(view: View, trial: Trial) -> list[Action]:
    """Take the aliases of challengers that were dropped; one that a person has moved since is left alone."""
    actions: list[Action] = []
    for alias, why in trial.dropped.items():
        step = f"drop:{alias}"
        if step in trial.steps:
            continue
        version = trial.challengers[alias]
        if view.desired.aliases.get(alias) == version:
            actions.append(MoveAlias(trial.service, alias, None, version))
        actions.append(TagVersion(trial.service, version, trial.tag, f"{alias}: dropped: {why}"))
        actions.append(MarkStep(trial.service, trial.id, step))
    return actions


def _is_told(view: View, trial: Trial) -> bool:
    """Whether every replica splits by the trial's present table."""
    return view.is_settled and view.traffic.get("trial") == trial.table.to_json()
