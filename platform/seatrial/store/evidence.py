"""A trial's evidence, grouped by unit inside the database: only one row an arm leaves it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Float, Integer, Select, and_, case, cast, func, or_, select

from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.trial import Trial
from seatrial.experiments.verdict import TrialPolicy
from seatrial.store.tables import exposures, outcomes


def read_evidence(connection: Connection, trial: Trial, *, now: float) -> Evidence:
    """Sufficient statistics of each of the trial's arms."""
    policy = TrialPolicy.from_json(trial.policy)
    rows = {row["arm"]: row for row in connection.execute(_by_arm(trial.id, policy)).mappings()}
    ignored = connection.execute(_ignored(trial.id, policy)).scalar_one() if policy.proportion else 0
    arms = tuple(
        _arm(arm.name, arm.version, rows[arm.name])
        if arm.name in rows
        else ArmEvidence.empty(arm.name, arm.version)
        for arm in trial.table.arms
    )
    return Evidence(now, arms, int(ignored))


def _arm(name: str, version: str, row: Any) -> ArmEvidence:
    return ArmEvidence(
        name=name,
        version=version,
        assigned_units=int(row["assigned_units"]),
        exposed_units=int(row["exposed_units"]),
        requests=int(row["requests"]),
        exposures=int(row["exposures"]),
        failures=int(row["failures"]),
        fallbacks=int(row["fallbacks"]),
        outcomes=int(row["outcomes"]),
        stats=ArmStats(int(row["n"]), float(row["total"] or 0.0), float(row["total_squares"] or 0.0)),
        unanswered=float(row["unanswered"]),
    )


def _by_request(trial_id: str, policy: TrialPolicy) -> Select[Any]:
    """One row a request: its arm and unit, whether it was answered, the mean of its outcomes or null."""
    belongs = [outcomes.c.request_id == exposures.c.request_id, outcomes.c.service == exposures.c.service]
    belongs.append(outcomes.c.metric == policy.metric)
    if policy.proportion:
        belongs.append(outcomes.c.value.between(0.0, 1.0))
    answered = exposures.c.error.is_(None)
    # The client's own faults (4xx, and 499 for one that went away) say nothing about an arm.
    failed = and_(exposures.c.error.is_not(None), or_(exposures.c.status < 400, exposures.c.status >= 500))
    value = func.avg(outcomes.c.value)
    return (
        select(
            exposures.c.arm,
            exposures.c.unit,
            case((answered, 1), else_=0).label("answered"),
            case((failed, 1), else_=0).label("failed"),
            case((exposures.c.fallback, 1), else_=0).label("fell_back"),
            func.count(outcomes.c.outcome_id).label("outcomes"),
            (func.coalesce(value, 0.0) if policy.missing_counts_zero else value).label("value"),
        )
        .select_from(exposures.outerjoin(outcomes, and_(*belongs)))
        .where(exposures.c.trial_id == trial_id)
        .group_by(
            exposures.c.request_id,
            exposures.c.arm,
            exposures.c.unit,
            exposures.c.error,
            exposures.c.status,
            exposures.c.fallback,
        )
    )


def _by_unit(trial_id: str, policy: TrialPolicy) -> Select[Any]:
    """One row a unit and arm; its value is the mean over its answered requests."""
    request = _by_request(trial_id, policy).subquery("request")
    is_answered = request.c.answered == 1
    is_left = or_(request.c.failed == 1, request.c.fell_back == 1)
    return select(
        request.c.arm,
        func.max(request.c.answered).label("exposed"),
        func.count().label("requests"),
        func.sum(request.c.answered).label("answered"),
        func.sum(request.c.failed).label("failed"),
        func.sum(request.c.fell_back).label("fell_back"),
        func.sum(case((is_answered, request.c.outcomes), else_=0)).label("outcomes"),
        func.avg(case((is_answered, request.c.value), else_=None)).label("value"),
        func.avg(case((is_left, 1.0), else_=0.0)).label("unanswered"),
    ).group_by(request.c.arm, request.c.unit)


def _by_arm(trial_id: str, policy: TrialPolicy) -> Select[Any]:
    unit = _by_unit(trial_id, policy).subquery("unit")
    value = cast(unit.c.value, Float)
    return select(
        unit.c.arm,
        func.count().label("assigned_units"),
        cast(func.sum(unit.c.exposed), Integer).label("exposed_units"),
        func.sum(unit.c.requests).label("requests"),
        func.sum(unit.c.answered).label("exposures"),
        func.sum(unit.c.failed).label("failures"),
        func.sum(unit.c.fell_back).label("fallbacks"),
        func.sum(unit.c.outcomes).label("outcomes"),
        func.sum(cast(unit.c.unanswered, Float)).label("unanswered"),
        func.count(unit.c.value).label("n"),
        func.sum(value).label("total"),
        func.sum(value * value).label("total_squares"),
    ).group_by(unit.c.arm)


def _ignored(trial_id: str, policy: TrialPolicy) -> Select[Any]:
    """Outcomes of a share that lie outside 0..1."""
    return (
        select(func.count())
        .select_from(
            outcomes.join(
                exposures,
                and_(
                    outcomes.c.request_id == exposures.c.request_id,
                    outcomes.c.service == exposures.c.service,
                ),
            )
        )
        .where(
            exposures.c.trial_id == trial_id,
            outcomes.c.metric == policy.metric,
            ~outcomes.c.value.between(0.0, 1.0),
        )
    )
