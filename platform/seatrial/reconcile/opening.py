"""How a trial begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.namespaces import namespace_of
from seatrial.experiments.ramp import coverages
from seatrial.experiments.trial import CHAMPION, MOST_ALIAS_CHARS, Trial
from seatrial.reconcile.actions import Action, OpenTrial
from seatrial.reconcile.traffic import target_champion
from seatrial.reconcile.view import View


def open_trial(view: View) -> list[Action]:
    """Open a trial when the champion is served and every challenger that can be had is ready everywhere."""
    champion, challengers = view.wished, candidates(view)
    if champion is None or not challengers:
        return []
    if target_champion(view) != champion or view.champion != champion:
        return []
    if view.observed.state.served != champion or not all(map(view.is_ready, challengers.values())):
        return []
    if view.overlap is not None:
        return []
    number = view.observed.trials_so_far + 1
    trial_id = f"{view.desired.name}-{number}"
    policy = view.desired.config["trial"]
    table = _table(trial_id, champion, challengers, policy)
    name = view.desired.name
    opened = Trial(
        trial_id, name, number, "open", table, policy, champion, challengers, view.now, ramped_at=view.now
    )
    return [OpenTrial(name, opened)]


def candidates(view: View) -> dict[str, str]:
    """Alias → version of the challengers that may be compared: each version once, never the champion's, and
    under an alias that the evidence has room for."""
    found: dict[str, str] = {}
    for alias, version in view.challengers.items():
        if len(alias) > MOST_ALIAS_CHARS:
            continue
        if version != view.wished and version not in found.values() and not view.blocker(version):
            found[alias] = version
    return found


def _table(
    trial_id: str, champion: str, challengers: Mapping[str, str], policy: Mapping[str, Any]
) -> TrialTable:
    share = policy["challenger_share"]
    each = share / len(challengers)
    arms = [Arm(CHAMPION, champion, 1 - share)]
    arms += [Arm(alias, version, each) for alias, version in challengers.items()]
    seed = hashlib.sha256(":".join([trial_id, champion, *challengers.values()]).encode()).hexdigest()[:16]
    return TrialTable(
        trial_id,
        seed,
        coverages(policy)[0],
        tuple(arms),
        namespace=namespace_of(policy),
        holdout=policy.get("holdout") or 0.0,
    )
