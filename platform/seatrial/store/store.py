"""The one door to the database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update

from seatrial.store import writer
from seatrial.store.database import migrate, open_engine, reading, writing
from seatrial.store.tables import services
from seatrial.store.writer import Row


class Store:
    """Rows in, rows out; every write is idempotent. ``url`` is `sqlite:///…` or `postgresql+psycopg://…`.

    Raises (every method):
        RetryableError: the database is away or stayed locked; try the same call again.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)

    def migrate(self) -> None:
        """Create or upgrade the tables."""
        migrate(self.engine)

    def close(self) -> None:
        """Close pooled connections; a later call opens new ones."""
        self.engine.dispose()

    def add_exposures(self, rows: Sequence[Row]) -> None:
        """Add exposures, keyed by ``request_id``: one already there stays as it is.

        Columns: request_id, trial_id, service, unit, sticky, arm, assigned_version, served_version, fallback,
        status, at; and, where known, ttft_s, latency_s, completion_tokens, error.

        Raises:
            ValueError: a column is unknown or missing; nothing is written.
        """
        with writing(self.engine) as connection:
            writer.add_exposures(connection, rows)

    def add_outcomes(self, rows: Sequence[Row]) -> None:
        """Add outcomes made by :func:`outcome_row`, keyed by ``outcome_id``.

        Raises:
            ValueError: a value is not finite, a column is unknown or missing; nothing is written.
        """
        with writing(self.engine) as connection:
            writer.add_outcomes(connection, rows)

    def put_replica(self, row: Row) -> None:
        """Insert or replace one replica's status: replica_id, app, service, revision, loaded, at.

        ``loaded`` maps a version to "ready", "loading", or what went wrong.
        """
        with writing(self.engine) as connection:
            writer.put_replica(connection, row)

    def forget_replicas(self, *, before: float) -> None:
        """Delete the status of replicas last heard of earlier than ``before``."""
        with writing(self.engine) as connection:
            writer.forget_replicas(connection, before=before)

    def put_service(self, name: str, config: dict[str, Any], *, now: float) -> bool:
        """Insert the service, or replace its configuration; whether anything changed.

        ``config`` is `ServiceConfig.model_dump(mode="json")`.
        """
        text = json.dumps(config, sort_keys=True)
        row = {"name": name, "config": text, "created_at": now, "updated_at": now, "state": "{}"}
        with writing(self.engine) as connection:
            if writer.insert_new(connection, services, row):
                return True
            changed = connection.execute(
                update(services)
                .where(services.c.name == name, services.c.config != text)
                .values(config=text, updated_at=now)
            )
            return bool(changed.rowcount)

    def services(self) -> dict[str, dict[str, Any]]:
        """Every service: name → {"config", "state", "created_at", "updated_at"}."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(services).order_by(services.c.name)).mappings().all()
        return {
            row["name"]: {
                "config": json.loads(row["config"]),
                "state": json.loads(row["state"]),
                "created_at": row["created_at"],
                "updated_at": row["updated_at"],
            }
            for row in rows
        }

    def put_state(self, name: str, state: dict[str, Any]) -> None:
        """Replace what the controller keeps of the service."""
        with writing(self.engine) as connection:
            connection.execute(
                update(services)
                .where(services.c.name == name)
                .values(state=json.dumps(state, sort_keys=True))
            )
