"""A service whose aliases the registry does not tell: a challenger that loses is taken out, and nothing else.

For that the store and Ray Serve are enough. What a person may have wished meanwhile, and all that is good for
a challenger, waits for the registry; so does what is to be written there, since a decision is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seatrial.experiments.judgement import Judgement
from seatrial.experiments.trial import Trial, look_at
from seatrial.reconcile.actions import Action, AddLook, ChangeTrial, Decide, PutApps
from seatrial.reconcile.closing import decide_or_look, no_evidence
from seatrial.reconcile.steering import without
from seatrial.reconcile.traffic import revised
from seatrial.reconcile.view import ENGINE_DEPLOYMENT, View

LOST = ("roll_back", "invalid")


def plan_unread(view: View) -> list[Action]:
    """The actions for a service in a trial."""
    trial = view.observed.trial
    if trial is None or view.desired.deleted_at is not None:
        return []
    looks = _attend(view, trial) if view.observed.decision is None else []
    if any(isinstance(action, Decide | ChangeTrial) for action in looks):
        return looks
    return [*oust(view), *looks]


def _attend(view: View, trial: Trial) -> list[Action]:
    """End the trial if it is lost or a person stops it, or take losers out of it; keep the look."""
    evidence = view.observed.evidence or no_evidence(trial, view.now)
    judgement = look_at(trial, evidence, view.now)
    decision, look = decide_or_look(view, trial, evidence, judgement)
    # One that cannot be loaded is not out for that: it may be for want of the registry, and the champion
    # answers in its place.
    if decision is not None and (trial.stop is not None or judgement.verdict in LOST):
        return [Decide(trial.service, decision, look)]
    # A winner's look is taken again; a planned one that is not a winner's counts, though its verdict waits.
    is_kept = decision is None or (judgement.look is not None and judgement.verdict != "promote")
    kept = look if is_kept else None
    changed = without(trial, _losers(judgement))
    if changed is not None:
        return [ChangeTrial(trial.service, changed, kept)]
    return [] if kept is None else [AddLook(trial.service, kept)]


def _losers(judgement: Judgement) -> Mapping[str, str]:
    """Challengers that are out, and why; a promotion, which would end their part as well, names none."""
    if judgement.verdict != "promote":
        return judgement.drop
    return {
        arm: f"guardrail: {arm}: {rail.name} is beyond {rail.limit:.4g}"
        for arm, found in judgement.arms.items()
        for rail in found.guardrails
        if rail.breached
    }


def oust(view: View) -> list[Action]:
    """Tell Ray Serve what it was last told, but for the split: no arm in it that is out."""
    app = view.app
    if not view.ousted or app is None or app.config is None or app.status == "DELETING":
        return []
    table = None if view.table is None else view.table.to_json()
    body = {key: value for key, value in view.user_config.items() if key != "revision"}
    told = revised({**body, "traffic": {**view.traffic, "trial": table}})
    deployments: list[Any] = [
        {**each, "user_config": told} if each["name"] == ENGINE_DEPLOYMENT else each
        for each in app.config["deployments"]
    ]
    return [PutApps(app.name, ({**app.config, "deployments": deployments},), (app.name,))]
