"""How a service goes: its trial ends first, then its applications, last its row."""

from __future__ import annotations

from dataclasses import replace

from seatrial.reconcile.actions import Action, PutApps, PutState, RemoveService, WriteMove
from seatrial.reconcile.closing import moved_by_hand, record
from seatrial.reconcile.view import View, full_app_name


def take_down(view: View, deleted_at: float) -> list[Action]:
    """What can be done now for a service that is to go and whose trial, if there is one, is decided.

    The row is removed when Ray Serve lists none of its applications any more: without it nobody would know
    that they are to be removed.
    """
    name, trial, decision = view.desired.name, view.observed.trial, view.observed.decision
    if trial is not None and decision is not None:
        return record(trial, decision)
    state = view.observed.state
    move = moved_by_hand(view)
    if move is not None:
        noted: list[Action] = [] if state.move == move else [PutState(name, replace(state, move=move))]
        return [*noted, WriteMove(name, move)]
    prefix = full_app_name(name, "")
    listed = {each: app for each, app in view.apps.items() if each == name or each.startswith(prefix)}
    if not listed:
        return [RemoveService(name, deleted_at)]
    message = "it was deleted: Ray Serve is ending its engines"
    leaving = replace(state, phase="deleting", message=message, move=None)
    actions: list[Action] = [PutState(name, leaving)] if leaving != state else []
    if any(app.status != "DELETING" for app in listed.values()):
        actions.append(PutApps(name, (), tuple(sorted(listed))))
    return actions
