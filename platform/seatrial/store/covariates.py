"""What units did before a trial, for metrics that are adjusted by it (CUPED): read once, then kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from math import fsum
from typing import Any

from sqlalchemy import Connection, and_, insert, select

from seatrial.experiments.policy import MetricPolicy
from seatrial.experiments.trial import Trial
from seatrial.store.figures import MEASURES, Request, Told, figures_of
from seatrial.store.rules import Rules
from seatrial.store.tables import covariates, exposures, outcomes, trials

REQUEST = [exposures.c[name] for name in Request._fields]
PAGE = 20_000


def keep_covariates(
    connection: Connection, trial: Trial, rules: Rules, *, known: Mapping[str, float]
) -> dict[str, float]:
    """Keep each unit's mean of each adjusted metric; metric → mean over those units, for all the others.

    Those of metrics that are ``known`` stay as they were.
    """
    means = {}
    for metric in rules.metrics:
        if metric.covariate_h is None or metric.name in known:
            continue
        found = _before(connection, trial, metric, rules)
        rows = [
            {"trial_id": trial.id, "unit": unit, "metric": metric.name, "value": value}
            for unit, value in found.items()
        ]
        if rows:
            connection.execute(insert(covariates), rows)
        means[metric.name] = fsum(found.values()) / len(found) if found else 0.0
    return means


def _before(connection: Connection, trial: Trial, metric: MetricPolicy, rules: Rules) -> dict[str, float]:
    """Unit → mean over its requests in earlier trials of the service, within the hours before this one."""
    since = trial.opened_at - (metric.covariate_h or 0.0) * 3600
    own = replace(metric, covariate_h=None)
    plain = Rules((own,), rules.attribution_s, rules.prices)
    told = _told(connection, trial, metric.name, since)
    values = {}
    for unit, requests in _requests(connection, trial, since).items():
        joined = [request._replace(arm="") for request in requests]
        pair = figures_of(joined, told, (), plain, {})[""].values[0]
        if pair is not None:
            values[unit] = pair[0]
    return values


def _earlier(trial: Trial, since: float) -> Any:
    """Exposures of the service's earlier trials that fall into the time before this one."""
    ids = select(trials.c.id).where(trials.c.service == trial.service, trials.c.number < trial.number)
    at = exposures.c.at
    return and_(exposures.c.trial_id.in_(ids), at >= since, at < trial.opened_at)


def _requests(connection: Connection, trial: Trial, since: float) -> dict[str, list[Request]]:
    statement = select(exposures.c.unit, *REQUEST).where(_earlier(trial, since))
    found: dict[str, list[Request]] = defaultdict(list)
    for unit, *row in connection.execute(statement, execution_options={"yield_per": PAGE}):
        found[unit].append(Request(*row))
    return found


def _told(connection: Connection, trial: Trial, metric: str, since: float) -> dict[str, list[Told]]:
    """Request id → outcomes that were there when the trial opened."""
    found: dict[str, list[Told]] = defaultdict(list)
    if metric in MEASURES:
        return found
    joined = exposures.join(
        outcomes,
        and_(outcomes.c.request_id == exposures.c.request_id, outcomes.c.service == exposures.c.service),
    )
    row = outcomes.c
    statement = (
        select(row.request_id, row.metric, row.value, row.at)
        .select_from(joined)
        .where(_earlier(trial, since), row.metric == metric, row.at < trial.opened_at)
    )
    for request_id, *told in connection.execute(statement, execution_options={"yield_per": PAGE}):
        found[request_id].append(Told(*told))
    return found
