"""Hashes of the audit records, kept beside the decisions so that the chain in MLflow cannot change alone."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, select

from seatrial.experiments.record import Anchor
from seatrial.store.tables import anchors, trials
from seatrial.store.writer import insert_new


def add_anchor(connection: Connection, anchor: Anchor) -> None:
    """Keep the record's hash; the first one stands."""
    insert_new(connection, anchors, asdict(anchor))


def read_anchors(connection: Connection, service: str) -> list[Anchor]:
    """The service's anchors in the order of their records."""
    statement = select(anchors).where(anchors.c.service == service).order_by(anchors.c.sequence)
    return [Anchor(**row) for row in connection.execute(statement).mappings()]


def last_anchor(connection: Connection, service: str) -> Anchor | None:
    """The anchor of the service's newest record."""
    statement = select(anchors).where(anchors.c.service == service).order_by(anchors.c.sequence.desc())
    row = connection.execute(statement.limit(1)).mappings().first()
    return None if row is None else Anchor(**row)


def trial_states(connection: Connection, service: str) -> dict[str, str]:
    """Every trial of the service and its state, by number."""
    statement = select(trials.c.id, trials.c.state).where(trials.c.service == service)
    rows = connection.execute(statement.order_by(trials.c.number))
    return {row.id: row.state for row in rows}
