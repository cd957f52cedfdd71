"""What replicas write: exposures, outcomes, their own status. Writing a row twice leaves it as it was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from seatrial.store.tables import exposures, outcomes, replicas

Row = Mapping[str, Any]


def outcome_row(
    service: str,
    request_id: str,
    metric: str,
    value: float,
    *,
    now: float,
    at: float | None = None,
    client_id: str | None = None,
) -> dict[str, Any]:
    """A row for :meth:`Store.add_outcomes`; ``at`` is when it happened, ``now`` when it was received.

    Without ``client_id`` a request has one outcome of each metric: the first one counts.

    Raises:
        ValueError: the value is no finite number.
    """
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"value: {value}: give a finite number")
    key = ("id", service, client_id) if client_id else ("request", service, request_id, metric)
    return {
        "outcome_id": hashlib.sha256(json.dumps(key).encode()).hexdigest(),
        "request_id": request_id,
        "service": service,
        "metric": metric,
        "value": float(value),
        "at": now if at is None else at,
        "received_at": now,
    }


def add_exposures(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert the rows whose request is not there yet."""
    _insert_new(connection, exposures, rows)


def add_outcomes(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert the rows whose outcome is not there yet."""
    for index, row in enumerate(rows):
        if not math.isfinite(row["value"]):
            raise ValueError(f"outcomes[{index}].value: {row['value']}: give a finite number")
    _insert_new(connection, outcomes, rows)


def put_replica(connection: Connection, row: Row) -> None:
    """Insert or replace the replica's status; ``loaded`` may be a mapping or JSON text."""
    loaded = row["loaded"]
    values = {**row, "loaded": loaded if isinstance(loaded, str) else json.dumps(loaded, sort_keys=True)}
    statement = insert(connection, replicas).values(_complete(replicas, values))
    changed = {column.name: statement.excluded[column.name] for column in replicas.c}
    connection.execute(statement.on_conflict_do_update(index_elements=["replica_id"], set_=changed))


def forget_replicas(connection: Connection, *, before: float) -> None:
    """Delete the status of replicas that were last heard of earlier than ``before``."""
    connection.execute(delete(replicas).where(replicas.c.at < before))


def insert_new(connection: Connection, table: Table, row: Row) -> bool:
    """Insert one row unless its key is taken; whether it was inserted."""
    statement = insert(connection, table).values(_complete(table, row)).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key)).first() is not None


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _insert_new(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    if not rows:
        return
    statement = insert(connection, table).on_conflict_do_nothing()
    try:
        connection.execute(statement, [_complete(table, row) for row in rows])
    except (DataError, IntegrityError, OverflowError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ValueError(f"{table.name}: a value that the database cannot keep: {reason}") from error


def _complete(table: Table, row: Row) -> dict[str, Any]:
    """The row with None for nullable columns that it lacks.

    Raises:
        ValueError: a column that the table does not have, or a required one that is missing.
    """
    unknown = sorted(set(row) - set(table.c.keys()))
    if unknown:
        raise ValueError(f"{table.name}: no column {', '.join(unknown)}: remove it")
    missing = [c.name for c in table.c if not c.nullable and row.get(c.name) is None and c.default is None]
    if missing:
        raise ValueError(f"{table.name}: {', '.join(missing)}: missing: give a value")
    return {
        column.name: row.get(column.name)
        for column in table.c
        if column.nullable or row.get(column.name) is not None
    }
