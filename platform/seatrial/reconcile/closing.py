"""How a trial ends: who decides, which aliases move, what is recorded."""

from __future__ import annotations

from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.trial import CHALLENGER, CHAMPION, PREVIOUS, Decision, Look, Trial
from seatrial.experiments.verdict import Judgement, TrialPolicy, VerdictName, judge
from seatrial.reconcile.actions import (
    Action,
    AddLook,
    CloseTrial,
    Decide,
    MarkStep,
    MoveAlias,
    TagVersion,
    WriteAudit,
)
from seatrial.reconcile.view import View

CONTROLLER = "seatrial controller"
PERSON = "a person, through the registry"
# A look is kept when this share more units have been seen than at the last one.
LOOK_GROWTH = 0.02


def look_at(trial: Trial, evidence: Evidence, now: float) -> Judgement:
    """The judgement of the trial's own policy."""
    policy = TrialPolicy.from_json(trial.policy)
    shares = {arm.name: arm.weight for arm in trial.table.arms}
    return judge(policy, shares, trial.opened_at, evidence, now)


def end_or_look(view: View, trial: Trial) -> list[Action]:
    """Decide the trial if it is time, else keep a look when there is something new to see."""
    evidence = view.observed.evidence or no_evidence(trial, view.now)
    judgement = look_at(trial, evidence, view.now)
    look = AddLook(
        trial.service,
        Look(trial.id, evidence.units, view.now, {a.name: a.exposures for a in evidence.arms}, judgement),
    )
    ended = _ended(view, trial, judgement)
    last = view.observed.last_look_units
    if ended is None:
        is_new = evidence.units > max(last, last * (1 + LOOK_GROWTH))
        return [look] if is_new else []
    verdict, reason, actor = ended
    decision = Decision(
        trial.id, trial.id, trial.service, verdict, reason, actor, evidence, judgement, view.now
    )
    looks: list[Action] = [look] if evidence.units > last else []
    return [*looks, Decide(trial.service, decision)]


def _ended(view: View, trial: Trial, judgement: Judgement) -> tuple[VerdictName, str, str] | None:
    """Verdict, reason and who acted. A person's wish comes before any evidence."""
    moved = [
        f"{alias} moved from {before} to {now or 'nothing'}"
        for alias, before, now in (
            (CHAMPION, trial.champion, view.wished),
            (CHALLENGER, trial.challenger, view.challenger),
        )
        if now != before
    ]
    if moved:
        return "superseded", " and ".join(moved), PERSON
    error = view.error(trial.challenger)
    if error is not None:
        return "roll_back", f"version {trial.challenger} cannot be loaded: {error}", CONTROLLER
    if judgement.verdict is not None:
        return judgement.verdict, judgement.reason, CONTROLLER
    return None


def move_aliases(view: View, trial: Trial, decision: Decision) -> list[Action]:
    """The alias moves that the decision asks for and that are not done yet.

    A step is noted once done, so that an alias that a person moves afterwards is left alone; one that a
    person moved before it was its turn is left alone as well.
    """
    aliases = dict(view.desired.aliases)
    actions: list[Action] = []
    for alias, version, expected in _wanted_moves(aliases, trial, decision.verdict):
        step = f"alias:{alias}"
        if step in trial.steps:
            continue
        found = aliases.get(alias)
        if found == expected and found != version:
            actions.append(MoveAlias(trial.service, alias, version, expected))
        actions.append(MarkStep(trial.service, trial.id, step))
    return actions


def _wanted_moves(
    aliases: dict[str, str], trial: Trial, verdict: VerdictName
) -> list[tuple[str, str | None, str | None]]:
    """Alias, its new version (None removes it), and the version from which it may be moved."""
    drop: tuple[str, str | None, str | None] = (CHALLENGER, None, trial.challenger)
    champion = aliases.get(CHAMPION)
    if verdict == "promote":
        moves: list[tuple[str, str | None, str | None]] = [(CHAMPION, trial.challenger, trial.champion)]
        if champion in (trial.champion, trial.challenger):
            moves.append((PREVIOUS, trial.champion, aliases.get(PREVIOUS)))
        return [*moves, drop]
    if verdict == "superseded":
        # Whoever made the challenger the champion has ended its candidacy; left behind, the alias would
        # open a new trial as soon as the champion is moved back.
        return [drop] if champion == trial.challenger else []
    return [drop]


def record(trial: Trial, decision: Decision) -> list[Action]:
    """What is written once the aliases stand where they should."""
    key = f"seatrial.trial.{trial.id}"
    return [
        TagVersion(trial.service, trial.champion, key, f"{CHAMPION}: {decision.verdict}"),
        TagVersion(trial.service, trial.challenger, key, f"{CHALLENGER}: {decision.verdict}"),
        WriteAudit(trial.service, trial, decision),
        CloseTrial(trial.service, decision),
    ]


def no_evidence(trial: Trial, now: float) -> Evidence:
    """What is known of a trial that nobody has looked at."""
    return Evidence(now, tuple(ArmEvidence.empty(arm.name, arm.version) for arm in trial.table.arms))
