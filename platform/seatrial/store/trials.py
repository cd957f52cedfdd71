"""Trials, decisions and looks as rows."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from seatrial.experiments.assignment import Namespace, TrialTable
from seatrial.experiments.namespaces import overlapping, running
from seatrial.experiments.trial import Decision, Look, Stop, Trial
from seatrial.experiments.verdict import Judgement
from seatrial.store.tables import decisions, looks, trials
from seatrial.store.writer import insert_new


def open_trial(connection: Connection, trial: Trial) -> None:
    """Insert the trial; one with the same id, or the service's same number, stays as it is.

    Nothing is inserted beside another service's open trial that it is to exclude: two that open at the same
    moment do not know of each other.
    """
    if overlapping(trial.table.namespace, _running(connection, trial.service)):
        return
    row = {
        "id": trial.id,
        "service": trial.service,
        "number": trial.number,
        "state": trial.state,
        "table": json.dumps(trial.table.to_json()),
        "policy": json.dumps(dict(trial.policy), sort_keys=True),
        "champion": trial.champion,
        "challengers": json.dumps(dict(trial.challengers)),
        "opened_at": trial.opened_at,
        "ramped_at": trial.ramped_at,
        "steps": json.dumps(list(trial.steps)),
    }
    insert_new(connection, trials, row)


def _running(connection: Connection, service: str) -> dict[str, Namespace]:
    """What the open trials of all other services have of namespaces."""
    is_other = (trials.c.state != "closed", trials.c.service != service)
    rows = connection.execute(select(trials.c.service, trials.c.table).where(*is_other))
    return running({other: TrialTable.from_json(json.loads(table)) for other, table in rows})


def change_trial(connection: Connection, trial: Trial) -> bool:
    """Give a trial that nobody has decided the table of ``trial``, and what goes with it; whether it was so.

    A decided one keeps the table that it was judged by, whatever a controller that lost its lease still does.
    """
    _stop_of(connection, trial.id)
    if read_decision(connection, trial.id) is not None:
        return False
    values = {
        "table": json.dumps(trial.table.to_json()),
        "ramped_at": trial.ramped_at,
        "dropped": json.dumps(dict(trial.dropped)),
    }
    is_open = (trials.c.id == trial.id, trials.c.state != "closed")
    return connection.execute(update(trials).where(*is_open).values(values)).rowcount > 0


def ask_stop(connection: Connection, trial_id: str, stop: Stop) -> bool:
    """Note the wish; whether the trial was undecided and nobody had wished so before."""
    if _stop_of(connection, trial_id) is not None or read_decision(connection, trial_id) is not None:
        return False
    is_going = (trials.c.id == trial_id, trials.c.state != "closed")
    statement = update(trials).where(*is_going).values(stop=json.dumps(asdict(stop)))
    return connection.execute(statement).rowcount > 0


def _stop_of(connection: Connection, trial_id: str) -> str | None:
    """The wish to end the trial, which nobody changes until the transaction is over."""
    # PostgreSQL locks the row; SQLite's writers exclude each other anyway.
    statement = select(trials.c.stop).where(trials.c.id == trial_id).with_for_update()
    return connection.execute(statement).scalar()


def all_trials(connection: Connection, service: str | None = None, *, limit: int = 200) -> list[Trial]:
    """The latest trials, of one service or of all, the newest first."""
    statement = select(trials).order_by(trials.c.opened_at.desc(), trials.c.number.desc()).limit(limit)
    if service is not None:
        statement = statement.where(trials.c.service == service)
    return [_trial(row) for row in connection.execute(statement).mappings()]


def read_trial(connection: Connection, trial_id: str) -> Trial | None:
    """The trial with this id."""
    row = connection.execute(select(trials).where(trials.c.id == trial_id)).mappings().first()
    return None if row is None else _trial(row)


def latest_trial(connection: Connection, service: str) -> Trial | None:
    """The service's last trial, open or closed."""
    statement = select(trials).where(trials.c.service == service).order_by(trials.c.number.desc()).limit(1)
    row = connection.execute(statement).mappings().first()
    return None if row is None else _trial(row)


def mark_step(connection: Connection, trial_id: str, step: str) -> None:
    """Note that a closing step is done, beside those that others note at the same moment."""
    # PostgreSQL locks the row until the transaction ends; SQLite's writers exclude each other anyway.
    steps = select(trials.c.steps).where(trials.c.id == trial_id).with_for_update()
    done = json.loads(connection.execute(steps).scalar_one())
    if step not in done:
        values = {"steps": json.dumps([*done, step])}
        connection.execute(update(trials).where(trials.c.id == trial_id).values(values))


def close_trial(connection: Connection, decision: Decision) -> None:
    """Close the decided trial; a closed one stays as it is."""
    connection.execute(
        update(trials)
        .where(trials.c.id == decision.trial_id, trials.c.state != "closed")
        .values(
            state="closed",
            closed_at=decision.decided_at,
            verdict=decision.verdict,
            reason=decision.reason,
        )
    )


def add_decision(connection: Connection, decision: Decision) -> bool:
    """Insert the decision unless there is one; False where it does not know of a person's wish to end it."""
    if _stop_of(connection, decision.trial_id) is not None and decision.cause != "person":
        return False
    plain = decision.to_json()
    texts = {name: json.dumps(plain[name], sort_keys=True) for name in ("evidence", "judgement")}
    insert_new(connection, decisions, {**plain, **texts})
    return True


def read_decision(connection: Connection, trial_id: str) -> Decision | None:
    """The trial's decision, if there is one."""
    row = connection.execute(select(decisions).where(decisions.c.trial_id == trial_id)).mappings().first()
    if row is None:
        return None
    parsed = {name: json.loads(row[name]) for name in ("evidence", "judgement")}
    return Decision.from_json({**row, **parsed})


def add_look(connection: Connection, look: Look) -> None:
    """Insert the look; one at the same number of units stays as it is, unless only this one was planned.

    Two planned ones can meet where an arm has left and the plan counts the units of those that are left: had
    the second the first one's place, the plan would have taken one look less than it has.
    """
    if look.judgement.look is not None:
        at = (looks.c.trial_id == look.trial_id, looks.c.units == look.units)
        kept = connection.execute(select(looks).where(*at)).mappings().first()
        if kept is not None and _look(kept).judgement.look is None:
            connection.execute(delete(looks).where(*at))
    plain = look.to_json()
    body = {"judgement": plain["judgement"], "exposures": dict(look.exposures)}
    if look.planned_units is not None:
        body["planned_units"] = look.planned_units
    row = {"trial_id": look.trial_id, "units": look.units, "at": look.at, "judgement": json.dumps(body)}
    insert_new(connection, looks, row)


def read_looks(connection: Connection, trial_id: str) -> list[Look]:
    """The trial's looks by number of units."""
    statement = select(looks).where(looks.c.trial_id == trial_id).order_by(looks.c.units)
    return [_look(row) for row in connection.execute(statement).mappings()]


def last_look_units(connection: Connection, trial_id: str) -> int:
    """Units of the trial's last look; 0 when there is none."""
    statement = select(func.max(looks.c.units)).where(looks.c.trial_id == trial_id)
    return int(connection.execute(statement).scalar_one() or 0)


def _trial(row: Any) -> Trial:
    values = dict(row)
    return Trial(
        **{
            **values,
            "table": TrialTable.from_json(json.loads(values["table"])),
            "policy": json.loads(values["policy"]),
            "challengers": json.loads(values["challengers"]),
            "steps": tuple(json.loads(values["steps"])),
            "dropped": json.loads(values["dropped"]),
            "stop": Stop(**json.loads(values["stop"])) if values["stop"] else None,
        }
    )


def _look(row: Any) -> Look:
    body = json.loads(row["judgement"])
    judgement = Judgement.from_json(body["judgement"])
    exposures, planned = body["exposures"], body.get("planned_units")
    return Look(row["trial_id"], row["units"], row["at"], exposures, judgement, planned)
