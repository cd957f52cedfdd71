"""What `/status` says: every service, its replicas, and its latest trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seatrial.controller.loop import Report
from seatrial.controller.report import reported
from seatrial.experiments.evidence import finite
from seatrial.reconcile.world import ServiceState
from seatrial.store import Store


def summary(store: Store, seen: Report, now: float) -> dict[str, Any]:
    """The whole page as plain JSON. Trials are shown as the last pass saw them, so that asking costs little.

    Raises:
        RetryableError: the store does not answer.
    """
    rows = store.services()
    services = [_service(store, name, row, seen, now) for name, row in rows.items()]
    error = "; ".join(seen.errors) or None
    body: dict[str, Any] = finite({"at": now, "leader": seen.leader, "error": error, "services": services})
    return body


def _service(store: Store, name: str, row: Mapping[str, Any], seen: Report, now: float) -> dict[str, Any]:
    state = ServiceState.from_json(row["state"])
    trial = store.latest_trial(name)
    return {
        "name": name,
        "state": state.phase,
        "message": state.message,
        "route_prefix": row["route_prefix"],
        "observed": bool(row["state"]),
        "config_at": state.config_at,
        "champion": state.served,
        "aliases": dict(seen.aliases.get(name, {})),
        "refused": {version: refusal.error for version, refusal in state.refused.items()},
        "replicas": [
            {
                "id": each["replica_id"],
                "revision": each["revision"],
                "loaded": each["loaded"],
                "age_s": round(now - each["at"], 1),
            }
            for each in store.replicas(name)
        ],
        "trial": None if trial is None else reported(store, seen, trial, now),
    }
