"""How a service goes: its trial ends first, then its applications, last its row."""

from __future__ import annotations

from dataclasses import replace

from seatrial.reconcile.actions import Action, PutApps, PutState, RemoveService
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
    written = moved_by_hand(view)
    if written:
        return written
    prefix = full_app_name(name, "")
    listed = {each: app for each, app in view.apps.items() if each == name or each.startswith(prefix)}
    if not listed:
        return [RemoveService(name, deleted_at)]
    message = "it was deleted: Ray Serve is ending its engines"
    state = replace(view.observed.state, phase="deleting", message=message)
    actions: list[Action] = [PutState(name, state)] if state != view.observed.state else []
    if any(app.status != "DELETING" for app in listed.values()):
        actions.append(PutApps(name, (), tuple(sorted(listed))))
    return actions
