"""Find the units that new outcomes speak of. Those of unknown requests and units are kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from seatrial.store.tables import evidence_news, exposures, outcome_news, outcomes, trials

BATCH = 2000


def count_unplaced(connection: Connection, service: str) -> int:
    """Outcomes of the service whose unit has not been looked up."""
    return int(connection.execute(select(func.count()).where(*_is_unplaced(service))).scalar_one())


def place(connection: Connection, service: str, trial_id: str | None = None) -> int:
    """Look up a batch of outcomes: known ones make news of their unit; how many were looked up.

    Units are looked for in the service's last two trials and in ``trial_id``.
    """
    row = outcome_news.c
    statement = select(row.outcome_id, row.request_id, row.unit).where(*_is_unplaced(service)).limit(BATCH)
    news = connection.execute(statement).all()
    if not news:
        return 0
    of_requests = _trials_of_requests(
        connection, service, [each.request_id for each in news if each.request_id]
    )
    of_units = _trials_of_units(
        connection, service, trial_id, [each.unit for each in news if each.unit is not None]
    )
    known: list[str] = []
    unknown: list[str] = []
    changed: set[tuple[str, str]] = set()
    for each in news:
        found = of_requests.get(each.request_id, ()) if each.unit is None else of_units.get(each.unit, ())
        (known if found else unknown).append(each.outcome_id)
        changed.update(found)
    if changed:
        connection.execute(insert(evidence_news), [{"trial_id": t, "unit": u} for t, u in sorted(changed)])
    connection.execute(delete(outcome_news).where(row.outcome_id.in_(known)))
    connection.execute(update(outcome_news).where(row.outcome_id.in_(unknown)).values(is_unknown=True))
    return len(news)


def no_longer_unknown(
    connection: Connection, service: str, requests: Sequence[str], units: Sequence[str]
) -> None:
    """Take outcomes out of the unknown ones: their exposure has come."""
    row = outcome_news.c
    if connection.execute(select(row.outcome_id).where(*_is_unknown(service)).limit(1)).first() is None:
        return
    for start in range(0, len(requests), BATCH):
        part = requests[start : start + BATCH]
        is_one = (row.request_id.in_(part), row.unit.is_(None))
        connection.execute(delete(outcome_news).where(*_is_unknown(service), *is_one))
    connection.execute(delete(outcome_news).where(*_is_unknown(service), row.unit.in_(units)))


def count_outcomes(connection: Connection, service: str) -> tuple[int, int]:
    """All outcomes of the service, and those that are unknown."""
    every = connection.execute(select(func.count()).where(outcomes.c.service == service)).scalar_one()
    unknown = connection.execute(select(func.count()).where(*_is_unknown(service))).scalar_one()
    return int(every), int(unknown)


def _is_unplaced(service: str) -> tuple[Any, ...]:
    return outcome_news.c.service == service, outcome_news.c.is_unknown.is_(False)


def _is_unknown(service: str) -> tuple[Any, ...]:
    return outcome_news.c.service == service, outcome_news.c.is_unknown.is_(True)


def _trials_of_requests(
    connection: Connection, service: str, ids: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Request id → its trial and unit."""
    row = exposures.c
    statement = select(row.request_id, row.trial_id, row.unit).where(
        row.request_id.in_(ids), row.service == service
    )
    return {found.request_id: [(found.trial_id, found.unit)] for found in connection.execute(statement)}


def _trials_of_units(
    connection: Connection, service: str, trial_id: str | None, units: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Unit → itself in each of those trials that it was in."""
    if not units:
        return {}
    newest = select(trials.c.id).where(trials.c.service == service).order_by(trials.c.number.desc()).limit(2)
    ids = {*connection.execute(newest).scalars(), *([trial_id] if trial_id else [])}
    row = exposures.c
    statement = select(row.trial_id, row.unit).where(row.trial_id.in_(ids), row.unit.in_(units)).distinct()
    found: dict[str, list[tuple[str, str]]] = {}
    for trial_id, unit in connection.execute(statement):
        found.setdefault(unit, []).append((trial_id, unit))
    return found
