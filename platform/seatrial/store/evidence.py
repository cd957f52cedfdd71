"""A trial's evidence: what is new is added to sums that are kept, and the sums are read."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, func, select

from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.trial import Trial
from seatrial.store import folding, placing
from seatrial.store.database import counting, reading
from seatrial.store.rules import Rules
from seatrial.store.sums import ONE, ArmSums
from seatrial.store.tables import evidence_news, evidence_sums, exposures
from seatrial.store.trials import read_looks

DAY_S = 86400.0


def read_evidence(engine: Engine, trial: Trial, *, now: float) -> Evidence:
    """Sufficient statistics of each of the trial's arms, of all that was there when this was called."""
    rules = Rules.of(trial)
    catch_up(engine, trial, rules)
    with reading(engine) as connection:
        state = folding.read_state(connection, trial.id, rules.digest) or folding.State()
        taken = tuple(look.counts_as for look in read_looks(connection, trial.id) if look.judgement.look)
    sums = [state.arms.get(name, ArmSums()) for name in trial.arms]
    arms = tuple(
        _arm(name, version, found, rules)
        for (name, version), found in zip(trial.arms.items(), sums, strict=True)
    )
    ignored, late, early = (
        sum(found.counts[name] for found in sums) for name in ("ignored", "late", "early")
    )
    return Evidence(now, arms, ignored, late, taken, early)


def catch_up(engine: Engine, trial: Trial, rules: Rules) -> None:
    """Add all that is news now, a batch a transaction; what comes meanwhile is for the next time."""
    with reading(engine) as connection:
        is_begun = folding.read_state(connection, trial.id, rules.digest) is not None
        unplaced = placing.count_unplaced(connection, trial.service)
        if is_begun and not unplaced and not folding.has_news(connection, trial.id):
            return
    if not is_begun:
        with counting(engine) as connection:
            folding.lock(connection)
            folding.begin(connection, trial, rules)
    place_all(engine, trial.service, unplaced, trial.id)
    with reading(engine) as connection:
        statement = select(func.count()).where(evidence_news.c.trial_id == trial.id)
        news = connection.execute(statement).scalar_one()
    for _ in range(0, news, folding.BATCH):
        with counting(engine) as connection:
            folding.lock(connection)
            if not folding.fold(connection, trial, rules):
                return


def place_all(engine: Engine, service: str, unplaced: int, trial_id: str | None = None) -> None:
    """Look up the units of as many outcomes."""
    for _ in range(0, unplaced, placing.BATCH):
        with counting(engine) as connection:
            folding.lock(connection)
            placing.place(connection, service, trial_id)


def late_outcomes(connection: Connection, service: str) -> int:
    """Outcomes of the service that came too long after their request, in all trials that were looked at."""
    bodies = select(evidence_sums.c.body).where(evidence_sums.c.service == service)
    states = map(folding.State.from_text, connection.execute(bodies).scalars())
    return sum(arm.counts["late"] for state in states for arm in state.arms.values())


def units_per_day(connection: Connection, trial: Trial, *, now: float) -> float | None:
    """Units a day since the coverage was last raised, as if all took part; None when there were none."""
    row = exposures.c
    seen = select(func.count(row.unit.distinct())).where(row.trial_id == trial.id, row.at >= trial.ramped_at)
    units = int(connection.execute(seen).scalar_one())
    days = ((trial.closed_at or now) - trial.ramped_at) / DAY_S
    return units / days / trial.table.coverage if units and days > 0 else None


def _arm(name: str, version: str, sums: ArmSums, rules: Rules) -> ArmEvidence:
    metrics = {metric.name: sums.moments(at) for at, metric in enumerate(rules.metrics)}
    primary = metrics[rules.metrics[0].name]
    return ArmEvidence(
        name=name,
        version=version,
        assigned_units=sums.units,
        exposed_units=sums.exposed,
        requests=sums.counts["requests"],
        exposures=sums.counts["answered"],
        failures=sums.counts["failed"],
        fallbacks=sums.counts["fell_back"],
        outcomes=sums.counts["outcomes"],
        stats=ArmStats(primary.n, primary.x, primary.xx),
        unanswered=sums.unanswered / ONE,
        lost_units=sums.lost,
        metrics=metrics,
        histograms={m.name: sums.histogram(m.name) for m in rules.metrics if m.type == "quantile"},
    )
