"""From what is wished and what is observed to what is to be done. Pure: no I/O, no clock of its own.

Level-triggered: nothing depends on having seen a change happen, so a lost or repeated pass changes nothing.
A pass asks only for what can be done now; what must wait for replicas is asked for by a later pass, which
sees that they are ready. When everything is as it should be, the plan is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from seatrial.experiments.assignment import Namespace
from seatrial.experiments.namespaces import running
from seatrial.experiments.trial import PREVIOUS, Trial, look_at
from seatrial.reconcile.actions import (
    Action,
    AddLook,
    ChangeTrial,
    Decide,
    MoveAlias,
    PutApps,
    PutState,
    TagVersion,
    WriteMove,
)
from seatrial.reconcile.closing import decide_or_look, move_aliases, moved_by_hand, no_evidence, record
from seatrial.reconcile.deletion import take_down
from seatrial.reconcile.describe import phase_and_message
from seatrial.reconcile.opening import open_trial
from seatrial.reconcile.steering import steer, take_aliases, unloadable, without
from seatrial.reconcile.traffic import wanted_apps
from seatrial.reconcile.unread import oust, plan_unread
from seatrial.reconcile.view import View, full_app_name
from seatrial.reconcile.world import Desired, DesiredService, Observed, ObservedService, Refusal, ServiceState

LOAD_ERROR = "seatrial.load_error"


def plan(desired: Desired, observed: Observed, now: float) -> list[Action]:
    """Every action that can be taken now, in order, service by service."""
    actions: list[Action] = []
    for service in desired.services:
        known = observed.services.get(service.name, ObservedService())
        actions += plan_service(service, known, observed, now)
    return actions


def plan_service(
    desired: DesiredService, known: ObservedService, observed: Observed, now: float
) -> list[Action]:
    """The actions for one service."""
    view = View(desired, known, observed.apps, now, _taken(desired.name, observed))
    if not desired.is_read:
        return plan_unread(view)
    trial, decision = known.trial, known.decision
    looks: list[Action] = []
    if trial is not None and decision is None:
        looks = _attend(view, trial)
        if any(isinstance(action, Decide | ChangeTrial) for action in looks):
            return looks
    moves = _moves(view)
    puts = _puts_before(view, moves) if moves or view.ousted else []
    if puts or moves:
        return [*puts, *moves]
    if desired.deleted_at is not None:
        return take_down(view, desired.deleted_at)
    actions = [*looks, *_load_error_tags(view)]
    puts = _put_apps(view)
    actions += _note_served(view)
    move = moved_by_hand(view) if trial is None else None
    state = _state(view, is_changing=bool(puts))
    if move is not None:  # who was served is kept until the record of the move is: it is told by it
        state = replace(state, served=known.state.served, move=move)
    if state != known.state:
        actions.append(PutState(desired.name, state))
    actions += puts
    if trial is not None and decision is not None:
        actions += record(trial, decision)
    elif trial is None:
        actions += [] if move is None else [WriteMove(desired.name, move)]
        actions += [] if puts else open_trial(view)
    return actions


def _taken(name: str, observed: Observed) -> dict[str, Namespace]:
    """What the running trials of all other services have of namespaces."""
    trials = {other: each.trial for other, each in observed.services.items() if other != name}
    return running({other: trial.table for other, trial in trials.items() if trial is not None})


def _attend(view: View, trial: Trial) -> list[Action]:
    """End a running trial if it is time, else change what the look asks for; keep the look with either."""
    evidence = view.observed.evidence or no_evidence(trial, view.now)
    judgement = look_at(trial, evidence, view.now)
    decision, look = decide_or_look(view, trial, evidence, judgement)
    if decision is not None:
        return [Decide(trial.service, decision, look)]
    changed = without(trial, {**judgement.drop, **unloadable(view, trial)})
    # What else a look asks for is not done while aliases are to be taken, so it is looked again after that.
    if changed is None and take_aliases(view, trial):
        return []
    changed = changed or steer(view, trial, evidence, judgement)
    if changed is not None:
        return [ChangeTrial(trial.service, changed, look)]
    return [] if look is None else [AddLook(trial.service, look)]


def _moves(view: View) -> list[Action]:
    """What is to be done at the registry for challengers that have left, or for a trial that has ended."""
    trial, decision = view.observed.trial, view.observed.decision
    if trial is None:
        return []
    return take_aliases(view, trial) if decision is None else move_aliases(view, trial, decision)


def _puts_before(view: View, moves: Sequence[Action]) -> list[Action]:
    """What Ray Serve is told before aliases are taken: a registry that takes no writes leaves nobody with a
    challenger that is out. It is told as if they were taken, so that it is told once."""
    decision = view.observed.decision
    if view.observed.trial is None or view.desired.deleted_at is not None:
        return []
    if decision is not None and decision.verdict == "promote":
        return oust(view)
    taken = {move.alias for move in moves if isinstance(move, MoveAlias)}
    aliases = {alias: version for alias, version in view.desired.aliases.items() if alias not in taken}
    return _put_apps(replace(view, desired=replace(view.desired, aliases=aliases)))


def _put_apps(view: View) -> list[Action]:
    wanted = wanted_apps(view)
    names = {app["name"] for app in wanted}
    prefix = full_app_name(view.desired.name, "")
    present = {
        name: app
        for name, app in view.apps.items()
        if (name == view.desired.name or name.startswith(prefix)) and app.status != "DELETING"
    }
    is_same = all(app["name"] in present and _holds(present[app["name"]].config or {}, app) for app in wanted)
    if is_same and not present.keys() - names:
        return []
    return [PutApps(view.desired.name, wanted, tuple(sorted(names | present.keys())))]


def _holds(present: Any, wanted: Any) -> bool:
    """Whether everything in ``wanted`` is in ``present``, which may say more."""
    if isinstance(wanted, dict) and isinstance(present, Mapping):
        if "revision" in wanted:  # a user_config: nothing may be left over from an older one
            return present == wanted
        return all(_holds(present.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(present, list):
        return len(present) == len(wanted) and all(map(_holds, present, wanted))
    return bool(present == wanted)


def _note_served(view: View) -> list[Action]:
    """After a switch, `previous` is what was served before."""
    served = view.observed.state.served
    previous = view.desired.aliases.get(PREVIOUS)
    is_switched = view.champion is not None and served not in (None, view.champion)
    if not is_switched or served == previous or served is None or view.info(served).problem:
        return []
    return [MoveAlias(view.desired.name, PREVIOUS, served, previous)]


def _state(view: View, *, is_changing: bool) -> ServiceState:
    before = view.observed.state
    phase, message = phase_and_message(view, is_changing=is_changing)
    return ServiceState(
        phase=phase,
        message=message,
        served=view.champion or before.served,
        refused=_refused(view),
        config_at=before.config_at if phase == "starting" else view.desired.config_at,
        engine_args=view.engine_args if view.is_settled else before.engine_args,
    )


def _refused(view: View) -> dict[str, Refusal]:
    """Versions that are not to be tried for a while. Taking the alias away and back tries at once."""
    before = view.observed.state.refused
    kept = {
        version: refusal
        for version, refusal in before.items()
        if version in view.aliased and not view.is_ready(version)
    }
    for version, error in _failures(view).items():
        tries = before[version].tries + 1 if version in before else 1
        kept[version] = Refusal(error, view.now, tries)
    return kept


def _failures(view: View) -> dict[str, str]:
    """Versions that a replica could not load just now, and that no assigned request needs."""
    found = {
        version: view.error(version)
        for version in view.aliased
        if version in view.told and version not in view.needed and not view.is_backing_off(version)
    }
    return {version: error for version, error in found.items() if error is not None}


def _load_error_tags(view: View) -> list[Action]:
    name = view.desired.name
    wanted: dict[str, str | None] = dict(_failures(view))
    for version in view.aliased:
        info = view.info(version)
        if info.problem and info.exists and info.load_error != info.problem:
            wanted[version] = info.problem
        elif info.load_error is not None and view.is_ready(version):
            wanted[version] = None
    return [TagVersion(name, version, LOAD_ERROR, text) for version, text in wanted.items()]
