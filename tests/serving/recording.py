"""Rows for a recorder, and what the store has of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from seatrial.store import Store, outcome_row


def exposure(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "trial_id": "t",
        "service": "svc",
        "unit": f"u{number}",
        "sticky": True,
        "arm": "champion",
        "assigned_version": "1",
        "served_version": "1",
        "fallback": False,
        "status": 200,
        "at": 1.0,
        "ttft_s": 0.1,
        **changes,
    }


def outcome(number: int) -> dict[str, Any]:
    return outcome_row("svc", f"r{number}", "resolved", 1.0, now=2.0)


def rows(store: Store, table: str) -> list[str]:
    with store.engine.connect() as connection:
        return [row[0] for row in connection.execute(text(f"select request_id from {table} order by at, 1"))]  # noqa: S608


def endings(store: Store) -> dict[str, tuple[int, str | None]]:
    """Status and error of each exposure."""
    with store.engine.connect() as connection:
        found = connection.execute(text("select request_id, status, error from exposures")).all()
    return {row.request_id: (row.status, row.error) for row in found}
