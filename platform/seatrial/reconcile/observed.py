"""Read everything a pass needs. It either succeeds for a service or leaves the service alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seatrial.reconcile.desired import Registry
from seatrial.reconcile.serve import ServeApi
from seatrial.reconcile.world import (
    AppStatus,
    Desired,
    DesiredService,
    Observed,
    ObservedService,
    ReplicaStatus,
    ServiceState,
)
from seatrial.store import Store


@dataclass(frozen=True)
class World:
    """One moment. ``problems`` has the services that could not be read whole, and are left alone."""

    desired: Desired
    observed: Observed
    problems: Mapping[str, Exception]


def observe(store: Store, serve: ServeApi, mlflow_uri: str, now: float) -> World:
    """Read the store, Ray Serve and MLflow.

    Raises:
        RetryableError: one of them does not answer at all.
    """
    rows = store.services()
    if not rows:
        return World(Desired(()), Observed({}, {}), {})
    apps = serve.apps()
    registry = Registry(mlflow_uri)
    desired: list[DesiredService] = []
    known: dict[str, ObservedService] = {}
    problems: dict[str, Exception] = {}
    for name, row in rows.items():
        try:
            service = _service(store, name, row, now)
            known[name] = service  # also where MLflow does not answer: its trial goes on beside the others
            also = _versions(service, apps.get(name))
            desired.append(registry.service(name, row, also))
        except Exception as error:  # a row that cannot be read must not keep the others waiting
            problems[name] = error
    return World(Desired(tuple(desired)), Observed(apps, known), problems)


def _service(store: Store, name: str, row: Mapping[str, Any], now: float) -> ObservedService:
    latest = store.latest_trial(name)
    trial = latest if latest is not None and latest.state != "closed" else None
    decision = store.decision(trial.id) if trial is not None else None
    is_live = trial is not None and decision is None
    return ObservedService(
        state=ServiceState.from_json(row["state"]),
        replicas=tuple(
            ReplicaStatus(each["replica_id"].split("#")[-1], each["revision"], each["loaded"], each["at"])
            for each in store.replicas(name)
        ),
        trial=trial,
        decision=decision,
        evidence=store.evidence(trial, now=now) if trial is not None and is_live else None,
        last_look_units=store.last_look_units(trial.id) if trial is not None else 0,
        trials_so_far=latest.number if latest is not None else 0,
        last_anchor=store.last_anchor(name),
    )


def _versions(service: ObservedService, app: AppStatus | None) -> set[str]:
    """Versions that matter although no alias may name them any more."""
    found = {service.state.served} - {None}
    if service.trial is not None:
        found |= set(service.trial.arms.values())
    for deployment in ((app.config if app else None) or {}).get("deployments", []):
        traffic = (deployment.get("user_config") or {}).get("traffic") or {}
        found |= {*traffic.get("aliases", {}).values(), (traffic.get("shadow") or {}).get("version")}
    return {version for version in found if version is not None}
