"""A service's phase, and one line that says why it is in it."""

from __future__ import annotations

from seatrial.experiments.trial import MOST_ALIAS_CHARS, look_at
from seatrial.reconcile.view import View
from seatrial.reconcile.world import Phase


def phase_and_message(view: View, *, is_changing: bool) -> tuple[Phase, str]:
    """``is_changing`` says that Ray Serve is about to be told something new."""
    app, state = view.app, view.observed.state
    if app is None:
        return "starting", "Ray Serve is being told to start the engine"
    if app.status in ("DEPLOY_FAILED", "UNHEALTHY") and not is_changing:
        return "failed", f"Ray Serve: {app.message or 'no message'}"
    if view.refusal is not None and not is_changing:
        return "failed", f"the new configuration is refused ({view.refusal}): replicas go on with the old one"
    is_new = state.config_at != view.desired.config_at
    if is_new and (is_changing or not view.is_settled):
        late = f" (Ray Serve: {app.message})" if app.message and app.status == "DEPLOYING" else ""
        return "starting", f"the engine is starting: {_ready_count(view)} replicas{late}"
    if view.wished is None and view.champion is None and view.observed.state.served is None:
        return "waiting", f"no champion: {_set_champion(view)}"
    notes = [note for note in (_champion_note(view), *_trial_notes(view), *_shadow_notes(view)) if note]
    if view.champion is None:
        phase: Phase = "failed" if view.wished is not None and view.blocker(view.wished) else "loading"
        return phase, "; ".join(notes)
    trial = view.live_trial
    is_split = trial is not None and (view.traffic.get("trial") or {}).get("id") == trial.id
    return ("trial" if is_split else "serving"), "; ".join(notes) or f"version {view.champion} serves"


def _champion_note(view: View) -> str:
    if view.wished is None:
        served = view.observed.state.served
        stays = f"version {view.champion} goes on" if view.champion else f"version {served} is being loaded"
        return f"no champion: {stays}; {_set_champion(view)}"
    if view.wished == view.champion:
        return ""
    stays = f": version {view.champion} goes on" if view.champion else ""
    blocker = view.blocker(view.wished)
    if blocker:
        return f"champion {view.wished} cannot be loaded ({blocker}){stays}"
    return f"champion {view.wished} is being loaded{_delay(view, view.wished)}{stays}"


def _set_champion(view: View) -> str:
    return f"set the alias `champion` of {view.desired.name} to a version"


def _trial_notes(view: View) -> list[str]:
    trial = view.live_trial
    if trial is None:
        return [_challenger_note(view, alias, version) for alias, version in view.challengers.items()]
    evidence = view.observed.evidence
    seen = look_at(trial, evidence, view.now).reason if evidence else "opening"
    late = [a for a in view.challengers if a not in trial.challengers or a in trial.dropped]
    waits = [f"{', '.join(late)} waits for the end of the trial"] if late else []
    return [f"trial {trial.id}: {seen}", *waits]


def _challenger_note(view: View, alias: str, challenger: str) -> str:
    if len(alias) > MOST_ALIAS_CHARS:
        return f"{alias} is longer than {MOST_ALIAS_CHARS} characters: no trial; set a shorter alias"
    if challenger == view.wished:
        return f"{alias} {challenger} is the champion already: no trial"
    blocker = view.blocker(challenger)
    if blocker:
        return f"{alias} {challenger} cannot be loaded ({blocker}): no trial; set the alias again to retry"
    if view.overlap is not None:
        return f"{alias} {challenger}: no trial yet: {view.overlap}"
    return f"{alias} {challenger} is being loaded{_delay(view, challenger)}"


def _shadow_notes(view: View) -> list[str]:
    version = view.shadow
    if version is None or version == view.champion or (view.traffic.get("shadow") or {}).get("version"):
        return []
    blocker = view.blocker(version)
    if blocker:
        return [f"shadow {version} cannot be loaded ({blocker}); set the alias again to retry"]
    return [f"shadow {version} is being loaded{_delay(view, version)}"]


def _delay(view: View, version: str) -> str:
    delay = view.delay(version)
    return f" ({delay})" if delay else ""


def _ready_count(view: View) -> str:
    told = sum(row is not None for row in view.rows)
    return f"{told} of {view.desired.config['engine']['replicas']}"
