"""Find the units that new outcomes speak of. Those that belong to no request so far are kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from seatrial.store.bulk import insert_all, is_one_of
from seatrial.store.tables import evidence_news, exposures, outcome_news, outcomes, trials

BATCH = 2000
_WITH_OUTCOMES = outcome_news.join(outcomes, outcomes.c.outcome_id == outcome_news.c.outcome_id)


class Stay(NamedTuple):
    """When a unit was in a trial: from its first request there to the trial's end, if that has come."""

    trial_id: str
    since: float
    until: float | None

    def has(self, at: float) -> bool:
        """Whether what is said of the unit then belongs to the trial."""
        return self.since <= at and (self.until is None or at <= self.until)


def count_unplaced(connection: Connection, service: str) -> int:
    """Outcomes of the service whose unit has not been looked up."""
    return int(connection.execute(select(func.count()).where(*_is_unplaced(service))).scalar_one())


def place(connection: Connection, service: str, trial_id: str | None = None) -> int:
    """Look up a batch of outcomes: known ones make news of their unit; how many were looked up.

    What is said of a unit belongs to the trials that it was in by then, of which the service's last two and
    ``trial_id`` are looked at.
    """
    row = outcome_news.c
    statement = (
        select(row.outcome_id, row.request_id, row.unit, outcomes.c.at)
        .select_from(_WITH_OUTCOMES)
        .where(*_is_unplaced(service))
        .limit(BATCH)
    )
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
        if each.unit is None:
            found = of_requests.get(each.request_id, [])
            is_joined = bool(found)
        else:
            stays = of_units.get(each.unit, [])
            found = [(stay.trial_id, each.unit) for stay in stays]  # early ones are figures too
            is_joined = any(stay.has(each.at) for stay in stays)
        (known if is_joined else unknown).append(each.outcome_id)
        changed.update(found)
    insert_all(connection, evidence_news, ("trial_id", "unit"), sorted(changed))
    connection.execute(delete(outcome_news).where(is_one_of(connection, row.outcome_id, known)))
    if unknown:
        is_among = is_one_of(connection, row.outcome_id, unknown)
        connection.execute(update(outcome_news).where(is_among).values(is_unknown=True))
    return len(news)


def no_longer_unknown(
    connection: Connection, service: str, requests: Sequence[str], units: Mapping[str, Stay]
) -> None:
    """Take outcomes out of the unknown ones: their exposure has come, of units one that was before them."""
    row = outcome_news.c
    if connection.execute(select(row.outcome_id).where(*_is_unknown(service)).limit(1)).first() is None:
        return
    for start in range(0, len(requests), BATCH):
        part = requests[start : start + BATCH]
        is_one = (is_one_of(connection, row.request_id, part), row.unit.is_(None))
        connection.execute(delete(outcome_news).where(*_is_unknown(service), *is_one))
    is_theirs = is_one_of(connection, row.unit, list(units))
    statement = select(row.outcome_id, row.unit, outcomes.c.at).select_from(_WITH_OUTCOMES)
    apart = connection.execute(statement.where(*_is_unknown(service), is_theirs))
    joined = [each.outcome_id for each in apart if units[each.unit].has(each.at)]
    for start in range(0, len(joined), BATCH):
        part = joined[start : start + BATCH]
        connection.execute(delete(outcome_news).where(is_one_of(connection, row.outcome_id, part)))


def count_outcomes(connection: Connection, service: str) -> tuple[int, dict[str, int]]:
    """All outcomes of the service, and how many of those kept apart are unknown, early, or late."""
    every = connection.execute(select(func.count()).where(outcomes.c.service == service)).scalar_one()
    row = outcome_news.c
    of_requests = select(func.count()).where(*_is_unknown(service), row.unit.is_(None))
    counted = Counter(unknown=int(connection.execute(of_requests).scalar_one()), early=0, late=0)
    page = (
        select(row.outcome_id, row.unit, outcomes.c.at)
        .select_from(_WITH_OUTCOMES)
        .where(*_is_unknown(service), row.unit.is_not(None))
        .order_by(row.outcome_id)
        .limit(BATCH)
    )
    after = ""
    while news := connection.execute(page.where(row.outcome_id > after)).all():
        stays = _stays(connection, service, [each.unit for each in news])
        counted.update(_why_apart(each.at, stays.get(each.unit, [])) for each in news)
        after = news[-1].outcome_id
    return int(every), dict(counted)


def _why_apart(at: float, stays: Sequence[tuple[float, float, float]]) -> str:
    """Why what was said of a unit then belongs to nobody; of each trial it was in: opening, first, last."""
    if any(opened_at <= at < last for opened_at, _, last in stays):
        return "early"
    if any(first <= at for _, first, _ in stays):
        return "late"
    return "early" if stays else "unknown"


def _stays(
    connection: Connection, service: str, units: Sequence[str]
) -> dict[str, list[tuple[float, float, float]]]:
    """Unit → of each of the service's trials that it was in: opening, its first and its last request."""
    row, opened = exposures.c, select(trials.c.id, trials.c.opened_at).where(trials.c.service == service)
    opened_at = {each.id: each.opened_at for each in connection.execute(opened)}
    is_theirs = (row.trial_id.in_(opened_at), is_one_of(connection, row.unit, units))
    statement = select(row.trial_id, row.unit, func.min(row.at), func.max(row.at)).where(*is_theirs)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for trial_id, unit, first, last in connection.execute(statement.group_by(row.trial_id, row.unit)):
        found.setdefault(unit, []).append((opened_at[trial_id], first, last))
    return found


def _is_unplaced(service: str) -> tuple[Any, ...]:
    return outcome_news.c.service == service, outcome_news.c.is_unknown.is_(False)


def _is_unknown(service: str) -> tuple[Any, ...]:
    return outcome_news.c.service == service, outcome_news.c.is_unknown.is_(True)


def _trials_of_requests(
    connection: Connection, service: str, ids: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Request id → its trial and unit."""
    row = exposures.c
    is_one = (is_one_of(connection, row.request_id, ids), row.service == service)
    statement = select(row.request_id, row.trial_id, row.unit).where(*is_one)
    return {found.request_id: [(found.trial_id, found.unit)] for found in connection.execute(statement)}


def _trials_of_units(
    connection: Connection, service: str, trial_id: str | None, units: Sequence[str]
) -> dict[str, list[Stay]]:
    """Unit → when it was in each of those trials."""
    if not units:
        return {}
    row, trial = exposures.c, trials.c
    newest = select(trial.id).where(trial.service == service).order_by(trial.number.desc()).limit(2)
    ids = {*connection.execute(newest).scalars(), *([trial_id] if trial_id else [])}
    ends = {each.id: each.closed_at for each in connection.execute(select(trials).where(trial.id.in_(ids)))}
    is_theirs = (row.trial_id.in_(ids), is_one_of(connection, row.unit, units))
    statement = select(row.trial_id, row.unit, func.min(row.at)).where(*is_theirs)
    found: dict[str, list[Stay]] = {}
    for each, unit, since in connection.execute(statement.group_by(row.trial_id, row.unit)):
        found.setdefault(unit, []).append(Stay(each, since, ends.get(each)))
    return found
