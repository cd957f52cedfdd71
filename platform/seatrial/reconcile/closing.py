"""How a trial ends: who decides, which aliases move, what is recorded."""

from __future__ import annotations

from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.judgement import Judgement, VerdictName
from seatrial.experiments.record import MOVE_MARK, ChampionMove
from seatrial.experiments.trial import CHAMPION, PREVIOUS, Cause, Decision, Look, Trial, units_of_plan
from seatrial.reconcile.actions import (
    Action,
    CloseTrial,
    MarkStep,
    MoveAlias,
    TagVersion,
    WriteAudit,
)
from seatrial.reconcile.steering import unloadable
from seatrial.reconcile.view import View

CONTROLLER = "seatrial controller"
PERSON = "a person, through the registry"
DELETER = "a person, by deleting the service"
# A look is kept when this share more units have been seen than at the last one.
LOOK_GROWTH = 0.02


def decide_or_look(
    view: View, trial: Trial, evidence: Evidence, judgement: Judgement
) -> tuple[Decision | None, Look | None]:
    """The decision if it is time, and the look if it is worth keeping."""
    exposures = {arm.name: arm.exposures for arm in evidence.arms}
    planned = units_of_plan(trial, evidence) if judgement.look is not None else None
    look = Look(trial.id, evidence.units, view.now, exposures, judgement, planned)
    ended = _ended(view, trial, judgement)
    last = view.observed.last_look_units
    # A planned look is always kept, also where another one was kept at its units: the next one counts on it.
    is_planned = judgement.look is not None
    if ended is None:
        is_new = is_planned or evidence.units > max(last, last * (1 + LOOK_GROWTH))
        # A verdict that is not followed is for a challenger that leaves: the look is taken again without it.
        return None, look if is_new and judgement.verdict is None else None
    verdict, reason, actor, cause = ended
    decision = Decision(
        trial.id, trial.id, trial.service, verdict, reason, actor, evidence, judgement, view.now, cause
    )
    return decision, look if is_planned or evidence.units > last else None


def _ended(view: View, trial: Trial, judgement: Judgement) -> tuple[VerdictName, str, str, Cause] | None:
    """Verdict, reason, who acted and why. A person's wish comes before any evidence."""
    if view.desired.deleted_at is not None:
        return "superseded", "the service was deleted", DELETER, "person"
    found = {alias: (version, view.desired.aliases.get(alias)) for alias, version in trial.arms.items()}
    moved = [
        f"{alias} moved from {before} to {now or 'nothing'}"
        for alias, (before, now) in found.items()
        if now != before and alias not in trial.dropped
    ]
    if moved:
        return "superseded", " and ".join(moved), PERSON, "person"
    if trial.stop is not None:
        return "inconclusive", f"stopped: {trial.stop.reason}", trial.stop.actor, "person"
    broken = unloadable(view, trial)
    leaving = {**judgement.drop, **broken}
    if broken and len(leaving) == len(trial.table.arms) - 1:
        return "roll_back", "; ".join(leaving.values()), CONTROLLER, "load"
    if judgement.verdict is not None and judgement.arm not in broken:
        return judgement.verdict, judgement.reason, CONTROLLER, "judgement"
    return None


def move_aliases(view: View, trial: Trial, decision: Decision) -> list[Action]:
    """The alias moves that the decision asks for and that are not done yet.

    A step is noted once done, so that an alias that a person moves afterwards is left alone; one that a
    person moved before it was its turn is left alone as well.
    """
    aliases = dict(view.desired.aliases)
    actions: list[Action] = []
    for alias, version, expected in _wanted_moves(aliases, trial, decision):
        step = f"alias:{alias}"
        if step in trial.steps:
            continue
        found = aliases.get(alias)
        if found == expected and found != version:
            actions.append(MoveAlias(trial.service, alias, version, expected))
        actions.append(MarkStep(trial.service, trial.id, step))
    return actions


def _wanted_moves(
    aliases: dict[str, str], trial: Trial, decision: Decision
) -> list[tuple[str, str | None, str | None]]:
    """Alias, its new version (None removes it), and the version from which it may be moved."""
    drops: list[tuple[str, str | None, str | None]] = [
        (alias, None, version)
        for alias, version in trial.challengers.items()
        if f"drop:{alias}" not in trial.steps
    ]
    champion = aliases.get(CHAMPION)
    if decision.verdict == "promote":
        winner = trial.challengers[decision.arm]
        moves: list[tuple[str, str | None, str | None]] = [(CHAMPION, winner, trial.champion)]
        if champion in (trial.champion, winner):
            moves.append((PREVIOUS, trial.champion, aliases.get(PREVIOUS)))
        return [*moves, *drops]
    if decision.verdict == "superseded":
        # Whoever made the challenger the champion has ended its candidacy; left behind, the alias would
        # open a new trial as soon as the champion is moved back.
        return [drop for drop in drops if drop[2] == champion]
    return drops


def record(trial: Trial, decision: Decision) -> list[Action]:
    """What is written once the aliases stand where they should."""
    ended = {arm: version for arm, version in trial.arms.items() if arm not in trial.dropped}
    return [
        *(
            TagVersion(trial.service, ended[arm], trial.tag, f"{arm}: {_said(arm, decision)}")
            for arm in ended
        ),
        WriteAudit(trial.service, trial, decision),
        CloseTrial(trial.service, decision),
    ]


def moved_by_hand(view: View) -> ChampionMove | None:
    """A champion that nobody's trial made champion, until its record is written.

    Told from the newest record, else from who was served; the first champion of all follows nobody. One whose
    record may be there already, without its hash in the store, comes first.
    """
    last, name = view.observed.last_anchor, view.desired.name
    begun = view.observed.state.move
    if begun is not None and (last is None or last.key != begun.key):
        return begun
    before = (last.champion if last else None) or view.observed.state.served
    after = view.desired.aliases.get(CHAMPION)
    if before is None or after is None or before == after:
        return None
    key = f"{name}{MOVE_MARK}move-{last.sequence + 1 if last else 1}"
    return ChampionMove(key, name, before, after, PERSON)


def _said(arm: str, decision: Decision) -> str:
    """What a decision is to one arm: of several challengers, a promotion is one's alone."""
    is_other = decision.verdict == "promote" and arm not in (CHAMPION, decision.arm)
    return f"promote of {decision.arm}" if is_other else decision.verdict


def no_evidence(trial: Trial, now: float) -> Evidence:
    """What is known of a trial that nobody has looked at."""
    return Evidence(now, tuple(ArmEvidence.empty(*arm) for arm in trial.arms.items()))
