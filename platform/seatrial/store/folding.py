"""Add what is new to a trial's figures, a batch of units at a time.

A unit whose rows have changed is made anew from all of its rows, and the sums change by the difference, in
one transaction with the deletion of the news. So nothing is ever counted twice or lost, whatever comes twice,
late or in another order, and wherever the process dies.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, text, update

from seatrial.experiments.trial import Trial
from seatrial.store.bulk import insert_all, is_one_of, update_all
from seatrial.store.covariates import REQUEST, keep_covariates
from seatrial.store.figures import Request, Told, UnitFigures, figures_of
from seatrial.store.placing import Stay, no_longer_unknown
from seatrial.store.rules import Rules
from seatrial.store.sums import ArmSums
from seatrial.store.tables import (
    covariates,
    evidence_news,
    evidence_sums,
    evidence_units,
    exposures,
    outcomes,
)

BATCH = 2000
KEY = ("trial_id", "unit", "arm")
TELLING = (outcomes.c.metric, outcomes.c.value, outcomes.c.at)


@dataclass
class State:
    """A trial's sums. ``units`` have been numbered; ``means`` stand in for covariates that are not known."""

    units: int = 0
    means: dict[str, float] = field(default_factory=dict)
    arms: dict[str, ArmSums] = field(default_factory=dict)

    def to_text(self) -> str:
        """JSON."""
        arms = {name: arm.to_json() for name, arm in self.arms.items()}
        return json.dumps({"units": self.units, "means": self.means, "arms": arms})

    @classmethod
    def from_text(cls, text: str) -> State:
        """The inverse of :meth:`to_text`."""
        body = json.loads(text)
        arms = {name: ArmSums.from_json(arm) for name, arm in body["arms"].items()}
        return cls(body["units"], body["means"], arms)


def lock(connection: Connection) -> None:
    """Let nobody else add to sums until the transaction ends; call it first. SQLite's writers wait anyway."""
    if connection.dialect.name == "postgresql":
        # Taken before the transaction's snapshot, which so holds all that the last one wrote.
        connection.execute(text("LOCK TABLE evidence_sums IN EXCLUSIVE MODE"))


def read_state(connection: Connection, trial_id: str, digest: str) -> State | None:
    """The trial's sums, unless they were made by other rules."""
    row = evidence_sums.c
    statement = select(row.body).where(row.trial_id == trial_id, row.layout == digest)
    body = connection.execute(statement).scalar_one_or_none()
    return None if body is None else State.from_text(body)


def has_news(connection: Connection, trial_id: str) -> bool:
    """Whether a unit of the trial has changed since its figures were made."""
    statement = select(evidence_news.c.id).where(evidence_news.c.trial_id == trial_id).limit(1)
    return connection.execute(statement).first() is not None


def begin(connection: Connection, trial: Trial, rules: Rules) -> None:
    """Start the trial's sums, or start them anew under other rules: every unit seen so far is news."""
    if read_state(connection, trial.id, rules.digest) is not None:
        return
    body = connection.execute(
        select(evidence_sums.c.body).where(evidence_sums.c.trial_id == trial.id)
    ).scalar()
    for table in (evidence_units, evidence_sums, evidence_news):
        connection.execute(delete(table).where(table.c.trial_id == trial.id))
    old = State.from_text(body) if body else State()
    means = {**keep_covariates(connection, trial, rules, known=old.means), **old.means}
    # Numbers go on where they were, so that those who read on from one miss nobody.
    state = State(old.units, means)
    row = {"trial_id": trial.id, "service": trial.service, "layout": rules.digest, "body": state.to_text()}
    connection.execute(insert(evidence_sums), row)
    seen = select(exposures.c.trial_id, exposures.c.unit).where(exposures.c.trial_id == trial.id).distinct()
    connection.execute(insert(evidence_news).from_select(["trial_id", "unit"], seen))


def fold(connection: Connection, trial: Trial, rules: Rules) -> int:
    """Add a batch of news to the trial's sums; of how many units."""
    state = read_state(connection, trial.id, rules.digest)
    row = evidence_news.c
    statement = select(row.id, row.unit).where(row.trial_id == trial.id).order_by(row.id).limit(BATCH)
    news = connection.execute(statement).all()
    if state is None or not news:
        return 0
    units = sorted({each.unit for each in news})
    # All that is known of these units now is in what follows, so none of their news is left to add.
    is_added = (row.trial_id == trial.id, is_one_of(connection, row.unit, units))
    connection.execute(delete(evidence_news).where(*is_added))
    after = _figures(connection, trial, rules, state, units)
    before = _kept(connection, trial.id, units)
    for sign, figures in ((-1, before), (1, after)):
        for (_, arm), each in figures.items():
            state.arms.setdefault(arm, ArmSums()).change(each, rules, sign)
    _keep(connection, trial.id, state, before, after)
    is_state = (evidence_sums.c.trial_id == trial.id, evidence_sums.c.layout == rules.digest)
    connection.execute(update(evidence_sums).where(*is_state).values(body=state.to_text()))
    return len(units)


Figures = dict[tuple[str, str], UnitFigures]
"""(unit, arm) → figures."""


def _figures(
    connection: Connection, trial: Trial, rules: Rules, state: State, units: Sequence[str]
) -> Figures:
    requests, told, told_of_units = _rows(connection, trial, units)
    known = _covariates(connection, trial.id, units) if state.means else {}
    ids = [request.request_id for unit in requests.values() for request in unit]
    stays = {
        unit: Stay(trial.id, min(each.at for each in theirs), trial.closed_at)
        for unit, theirs in requests.items()
    }
    no_longer_unknown(connection, trial.service, ids, stays)
    found: Figures = {}
    for unit, theirs in requests.items():
        adjusted = {**state.means, **known.get(unit, {})}
        made = figures_of(
            theirs, told, told_of_units.get(unit, ()), rules, adjusted, opened_at=trial.opened_at
        )
        found |= {(unit, arm): each for arm, each in made.items()}
    return found


Rows = tuple[dict[str, list[Request]], dict[str, list[Told]], dict[str, list[Told]]]


def _rows(connection: Connection, trial: Trial, units: Sequence[str]) -> Rows:
    """Requests by unit, outcomes by request, outcomes by unit."""
    requests: dict[str, list[Request]] = defaultdict(list)
    told: dict[str, list[Told]] = defaultdict(list)
    told_of_units: dict[str, list[Told]] = defaultdict(list)
    is_theirs = and_(exposures.c.trial_id == trial.id, is_one_of(connection, exposures.c.unit, units))
    for unit, *row in connection.execute(select(exposures.c.unit, *REQUEST).where(is_theirs)):
        requests[unit].append(Request(*row))
    is_same = and_(outcomes.c.request_id == exposures.c.request_id, outcomes.c.service == exposures.c.service)
    joined = exposures.join(outcomes, is_same)
    of_requests = select(outcomes.c.request_id, *TELLING).select_from(joined).where(is_theirs)
    for request_id, *row in connection.execute(of_requests):
        told[request_id].append(Told(*row))
    of_units = select(outcomes.c.unit, *TELLING).where(*_is_of_units(connection, trial, units))
    for unit, *row in connection.execute(of_units):
        told_of_units[unit].append(Told(*row))
    return requests, told, told_of_units


def _is_of_units(connection: Connection, trial: Trial, units: Sequence[str]) -> tuple[Any, ...]:
    """Outcomes of units that came while the trial was open."""
    row = outcomes.c
    is_theirs = (row.service == trial.service, is_one_of(connection, row.unit, units))
    return is_theirs if trial.closed_at is None else (*is_theirs, row.at <= trial.closed_at)


def _covariates(connection: Connection, trial_id: str, units: Sequence[str]) -> dict[str, dict[str, float]]:
    """Unit → metric → what it was before the trial."""
    row = covariates.c
    found: dict[str, dict[str, float]] = defaultdict(dict)
    is_theirs = (row.trial_id == trial_id, is_one_of(connection, row.unit, units))
    statement = select(row.unit, row.metric, row.value).where(*is_theirs)
    for unit, metric, value in connection.execute(statement):
        found[unit][metric] = value
    return found


def _kept(connection: Connection, trial_id: str, units: Sequence[str]) -> Figures:
    row = evidence_units.c
    is_theirs = (row.trial_id == trial_id, is_one_of(connection, row.unit, units))
    statement = select(row.unit, row.arm, row.figures).where(*is_theirs)
    found = connection.execute(statement)
    return {(unit, arm): UnitFigures.from_text(figures) for unit, arm, figures in found}


def _keep(connection: Connection, trial_id: str, state: State, before: Figures, after: Figures) -> None:
    """Write the figures that changed, and number the units that are seen for the first time."""
    seen = {unit for unit, _ in before}
    fresh: list[tuple[str, str, str, str, int | None]] = []
    changed: list[tuple[str, str, str, str]] = []
    for (unit, arm), figures in after.items():
        if (unit, arm) in before:
            if figures != before[unit, arm]:
                changed.append((trial_id, unit, arm, figures.to_text()))
            continue
        number = None
        if unit not in seen:
            seen.add(unit)
            number = state.units = state.units + 1
        fresh.append((trial_id, unit, arm, figures.to_text(), number))
    insert_all(connection, evidence_units, (*KEY, "figures", "number"), fresh)
    update_all(connection, evidence_units, KEY, ("figures",), changed)
    _take_out(connection, trial_id, before.keys() - after.keys())


def _take_out(connection: Connection, trial_id: str, gone: Collection[tuple[str, str]]) -> None:
    """Delete the figures of units that are in an arm no more."""
    row = evidence_units.c
    is_row = (row.trial_id == trial_id, row.unit == bindparam("is_unit"), row.arm == bindparam("is_arm"))
    if gone:
        rows = [{"is_unit": unit, "is_arm": arm} for unit, arm in gone]
        connection.execute(delete(evidence_units).where(*is_row), rows)
