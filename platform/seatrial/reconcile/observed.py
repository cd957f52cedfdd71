"""Read everything a pass needs. It either succeeds for a service or leaves the service alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seatrial.errors import RetryableError
from seatrial.reconcile.desired import Registry, as_begun
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
    """One moment. ``problems`` has the services that could not be read whole; they are left alone but for a
    trial that goes on without the registry. ``away`` is why that answers for none of them."""

    desired: Desired
    observed: Observed
    problems: Mapping[str, Exception]
    away: Exception | None = None


def observe(store: Store, serve: ServeApi, mlflow_uri: str, now: float) -> World:
    """Read the store, Ray Serve and MLflow.

    Raises:
        RetryableError: the store or Ray Serve does not answer at all.
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
            service = _service(store, name, row, apps.get(name), now)
            known[name] = service  # also where MLflow does not answer: its trial goes on beside the others
            also = _versions(service, apps.get(name))
            try:
                desired.append(registry.service(name, row, also))
            except RetryableError as error:
                problems[name] = error
                if service.trial is not None:
                    desired.append(as_begun(name, row, service.trial))
        except Exception as error:  # a row that cannot be read must not keep the others waiting
            problems[name] = error
    return World(Desired(tuple(desired)), Observed(apps, known), problems, registry.away)


def _service(
    store: Store, name: str, row: Mapping[str, Any], app: AppStatus | None, now: float
) -> ObservedService:
    latest = store.latest_trial(name)
    trial = latest if latest is not None and latest.state != "closed" else None
    decision = store.decision(trial.id) if trial is not None else None
    replicas = tuple(
        ReplicaStatus(each["replica_id"].split("#")[-1], each["revision"], each["loaded"], each["at"])
        for each in store.replicas(name)
    )
    evidence = None
    if trial is not None and decision is None:
        found = store.evidence(trial, now=now)
        evidence = replace(found, taken_at=_heard_until(replicas, app, trial.opened_at, now))
    return ObservedService(
        state=ServiceState.from_json(row["state"]),
        replicas=replicas,
        trial=trial,
        decision=decision,
        evidence=evidence,
        last_look_units=store.last_look_units(trial.id) if trial is not None else 0,
        trials_so_far=latest.number if latest is not None else 0,
        last_anchor=store.last_anchor(name),
    )


def _heard_until(replicas: Sequence[ReplicaStatus], app: AppStatus | None, since: float, now: float) -> float:
    """Until when all is in the store: the last word of the replica that has been silent longest.

    Requests and outcomes are written by the thread that writes that word. One that has never said anything
    has answered nobody yet.
    """
    listed = app.replica_ids if app is not None else ()
    words = [replica.at for replica in replicas if replica.replica_id in listed]
    return min(now, *words) if words else since


def _versions(service: ObservedService, app: AppStatus | None) -> set[str]:
    """Versions that matter although no alias may name them any more."""
    found = {service.state.served} - {None}
    if service.trial is not None:
        found |= set(service.trial.arms.values())
    for deployment in ((app.config if app else None) or {}).get("deployments", []):
        traffic = (deployment.get("user_config") or {}).get("traffic") or {}
        found |= {*traffic.get("aliases", {}).values(), (traffic.get("shadow") or {}).get("version")}
    return {version for version in found if version is not None}
