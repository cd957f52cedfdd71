"""Services as rows: written down, marked for deletion, removed."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, delete, select, update

from seatrial.store.tables import replicas, services
from seatrial.store.writer import insert_new


def put_service(connection: Connection, name: str, config: dict[str, Any], *, now: float) -> bool:
    """Insert the service or replace its configuration, and take a wish to delete it back."""
    text = json.dumps(config, sort_keys=True)
    row = {"name": name, "config": text, "created_at": now, "updated_at": now, "state": "{}"}
    # No two services have the same prefix, so `/` goes to the first one that finds it free.
    if any(insert_new(connection, services, row | {"route_prefix": each}) for each in ("/", f"/{name}")):
        return True
    is_row = services.c.name == name
    before = connection.execute(select(services.c.config).where(is_row)).scalar_one()
    values = {"config": text, "updated_at": now, "deleted_at": None}
    connection.execute(update(services).where(is_row).values(values))
    return bool(before != text)


def read_services(connection: Connection) -> dict[str, dict[str, Any]]:
    """Every service by name."""
    rows = connection.execute(select(services).order_by(services.c.name)).mappings()
    return {
        row["name"]: {
            **{key: value for key, value in row.items() if key != "name"},
            "config": json.loads(row["config"]),
            "state": json.loads(row["state"]),
        }
        for row in rows
    }


def ask_delete(connection: Connection, name: str, *, now: float) -> bool:
    """Mark the service, unless it is marked already; whether there is one."""
    unmarked = (services.c.name == name, services.c.deleted_at.is_(None))
    connection.execute(update(services).where(*unmarked).values(deleted_at=now))
    return connection.execute(select(services.c.name).where(services.c.name == name)).first() is not None


def remove_service(connection: Connection, name: str, *, deleted_at: float) -> None:
    """Remove the row that was marked then, and what its replicas said; one deployed again since stays."""
    is_marked = (services.c.name == name, services.c.deleted_at == deleted_at)
    if connection.execute(delete(services).where(*is_marked)).rowcount:
        connection.execute(delete(replicas).where(replicas.c.service == name))
