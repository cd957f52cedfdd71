"""What replicas write: exposures, outcomes, their own status. Writing a row twice leaves it as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete

from seatrial.store.bulk import Row, add_rows, insert
from seatrial.store.tables import exposures, outcomes, replicas

OUTCOME_NEWS = (
    "outcome_news (outcome_id, service, request_id, unit, is_unknown) "
    "SELECT outcome_id, service, request_id, unit, false"
)
# The evidence adds up squares: larger values would overflow a database's numbers.
MOST_VALUE = 1e15


def outcome_row(
    service: str,
    request_id: str | None,
    metric: str,
    value: float,
    *,
    now: float,
    at: float | None = None,
    client_id: str | None = None,
    unit: str | None = None,
    trial_id: str = "",
) -> dict[str, Any]:
    """A row for :meth:`Store.add_outcomes`; ``at`` is when it happened, ``now`` when it was received.

    It speaks of a request, or of a ``unit`` in the trial that is open. Without ``client_id`` a request, and a
    unit in each ``trial_id``, has one outcome of each metric: the first one counts.

    Raises:
        ValueError: the value is no number that can be kept, or both or neither of request and unit are given.
    """
    if isinstance(value, bool) or not abs(value) <= MOST_VALUE:
        raise ValueError(f"value: {value}: give a finite number from {-MOST_VALUE:g} to {MOST_VALUE:g}")
    if (request_id is None) == (unit is None):
        raise ValueError("request_id, unit: give one of the two")
    key: tuple[str | None, ...] = ("request", service, request_id, metric)
    if unit is not None:
        key = ("unit", service, trial_id, unit, metric)
    if client_id:
        key = ("id", service, client_id)
    return {
        "outcome_id": hashlib.sha256(json.dumps(key).encode()).hexdigest(),
        "request_id": request_id or "",
        "service": service,
        "metric": metric,
        "value": float(value),
        "at": now if at is None else at,
        "received_at": now,
        "unit": unit,
    }


def add_exposures(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert the rows whose request is not there yet, and note whose evidence they change."""
    add_rows(connection, exposures, rows, "evidence_news (trial_id, unit) SELECT trial_id, unit")


def add_outcomes(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert the rows whose outcome is not there yet, and note that their units are to be looked up."""
    for index, row in enumerate(rows):
        if not abs(row["value"]) <= MOST_VALUE:
            raise ValueError(
                f"outcomes[{index}].value: {row['value']}: "
                f"give a finite number from {-MOST_VALUE:g} to {MOST_VALUE:g}"
            )
    add_rows(connection, outcomes, rows, OUTCOME_NEWS)


def put_replica(connection: Connection, row: Row) -> None:
    """Insert or replace the replica's status; ``loaded`` may be a mapping or JSON text."""
    loaded = row["loaded"]
    values = {**row, "loaded": loaded if isinstance(loaded, str) else json.dumps(loaded, sort_keys=True)}
    statement = insert(connection, replicas).values(values)
    changed = {column.name: statement.excluded[column.name] for column in replicas.c}
    connection.execute(statement.on_conflict_do_update(index_elements=["replica_id"], set_=changed))


def forget_replicas(connection: Connection, *, before: float) -> None:
    """Delete the status of replicas that were last heard of earlier than ``before``."""
    connection.execute(delete(replicas).where(replicas.c.at < before))


def insert_new(connection: Connection, table: Table, row: Row) -> bool:
    """Insert one row unless its key is taken; whether it was inserted."""
    statement = insert(connection, table).values(row).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key)).first() is not None
