"""Facts about one service that several decisions need, derived from what was observed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from seatrial.experiments.assignment import Namespace, TrialTable
from seatrial.experiments.namespaces import namespace_of, trouble
from seatrial.experiments.trial import CHAMPION, PREVIOUS, SHADOW, Trial, is_challenger
from seatrial.monitoring.logs import plain
from seatrial.reconcile.world import AppStatus, DesiredService, ObservedService, ReplicaStatus, VersionInfo

ENGINE_DEPLOYMENT = "Engine"
# A replica reports every few seconds; one that has been silent for so long is not counted upon.
FRESH_S = 30.0
# Under this name a replica reports that it cannot understand what it was told.
CONFIG = "config"
REFUSED_S = 15.0
# How a replica ends the text of a trouble that may pass, such as MLflow being away.
TRYING_AGAIN = "trying again"
MOST_CHARS = 500


def full_app_name(service: str, version: str) -> str:
    """The application that serves a whole-model version of a service."""
    return f"{service}--v{version}"


@dataclass(frozen=True)
class View:
    """One service at ``now``: what is wished, what Serve runs, what its replicas say."""

    desired: DesiredService
    observed: ObservedService
    apps: Mapping[str, AppStatus]
    now: float
    taken: Mapping[str, Namespace] = field(default_factory=dict)
    """Other service → the part of a namespace that its running trial has."""

    @property
    def app(self) -> AppStatus | None:
        """The service's main application."""
        return self.apps.get(self.desired.name)

    @property
    def engine_args(self) -> Mapping[str, Any]:
        """What the engine was last told to be built from; empty when there is no application yet."""
        return ((self.app.config if self.app else None) or {}).get("args") or {}

    @cached_property
    def user_config(self) -> Mapping[str, Any]:
        """What the replicas were last told; empty when there is no application yet."""
        config = self.app.config if self.app else None
        for deployment in (config or {}).get("deployments", []):
            if deployment["name"] == ENGINE_DEPLOYMENT:
                return deployment.get("user_config") or {}
        return {}

    @property
    def traffic(self) -> Mapping[str, Any]:
        """The traffic that the replicas were last told; empty when none."""
        return self.user_config.get("traffic") or {}

    @property
    def champion(self) -> str | None:
        """The version that gets the traffic outside trials."""
        version: str | None = self.traffic.get("aliases", {}).get(CHAMPION)
        return version

    @property
    def wished(self) -> str | None:
        """The version that the champion alias names."""
        return self.desired.aliases.get(CHAMPION)

    @property
    def challengers(self) -> Mapping[str, str]:
        """Alias → version of those that ask for a place in a trial, `challenger` first."""
        return {a: v for a, v in sorted(self.desired.aliases.items()) if is_challenger(a)}

    @property
    def shadow(self) -> str | None:
        """The version that the shadow alias names."""
        return self.desired.aliases.get(SHADOW)

    @property
    def live_trial(self) -> Trial | None:
        """The open trial that nobody has decided yet."""
        return self.observed.trial if self.observed.decision is None else None

    @cached_property
    def overlap(self) -> str | None:
        """Why no trial may open beside those of other services, which it is to exclude."""
        return trouble(namespace_of(self.desired.config["trial"]), self.taken, runs=True)

    @cached_property
    def carried(self) -> frozenset[str]:
        """Versions that get requests under the traffic that the replicas were last told."""
        arms = (self.traffic.get("trial") or {}).get("arms", [])
        shadow = (self.traffic.get("shadow") or {}).get("version")
        aliased = self.traffic.get("aliases", {}).values()
        return frozenset([*aliased, *filter(None, [shadow]), *(arm["version"] for arm in arms)])

    @property
    def table(self) -> TrialTable | None:
        """The split of the trial as far as it has come: a winner keeps its share until it is champion."""
        trial, decision = self.observed.trial, self.observed.decision
        is_over = decision is not None and decision.verdict != "promote"
        return None if trial is None or is_over else trial.table

    @property
    def ousted(self) -> frozenset[str]:
        """Arms that the replicas were last told to split by, and that are in the trial no more."""
        told = (arm["name"] for arm in (self.traffic.get("trial") or {}).get("arms", []))
        return frozenset(told).difference(self.table.by_name if self.table else ())

    @cached_property
    def needed(self) -> frozenset[str]:
        """Versions in :attr:`carried` without which assigned requests could not be answered."""
        arms = (self.traffic.get("trial") or {}).get("arms", [])
        return frozenset([*filter(None, [self.champion]), *(arm["version"] for arm in arms)])

    @cached_property
    def told(self) -> Mapping[str, Mapping[str, Any]]:
        """The preload entries that the replicas were last told, by version."""
        return {entry["version"]: entry for entry in self.user_config.get("preload", [])}

    @cached_property
    def rows(self) -> tuple[ReplicaStatus | None, ...]:
        """For each replica that Serve lists, what it says of the present configuration, None if nothing."""
        fresh = {
            row.replica_id: row
            for row in self.observed.replicas
            if row.revision == self.user_config.get("revision") and self.now - row.at <= FRESH_S
        }
        return tuple(fresh.get(replica) for replica in (self.app.replica_ids if self.app else ()))

    @property
    def refusal(self) -> str | None:
        """Why a replica goes on with an older configuration than the one it was told a while ago."""
        if self.app is None:
            return None
        # Earlier than that it may still speak of what it was told before.
        since = max(self.app.told_at + REFUSED_S, self.now - FRESH_S)
        rows = (row for row in self.observed.replicas if row.replica_id in self.app.replica_ids)
        texts = (row.loaded.get(CONFIG) for row in rows if row.at >= since)
        return next((_trouble(text) for text in texts if text), None)

    @property
    def is_settled(self) -> bool:
        """Whether every replica has applied what it was last told."""
        running = self.app is not None and self.app.status == "RUNNING"
        return running and bool(self.rows) and all(row is not None for row in self.rows)

    def is_ready(self, version: str) -> bool:
        """Whether every replica has answered a warm-up request with ``version``."""
        entry = self.told.get(version)
        if entry is None or not self.rows:
            return False
        if "app" in entry and not self._runs(entry["app"]):
            return False
        return all(row is not None and row.loaded.get(version) == "ready" for row in self.rows)

    def error(self, version: str) -> str | None:
        """What a replica says went wrong with ``version``, for good as far as the replica is concerned."""
        final = (text for text in self._troubles(version) if not text.endswith(TRYING_AGAIN))
        return next(final, None) or self._app_error(version)

    def delay(self, version: str) -> str | None:
        """What keeps a replica from having ``version`` yet, which it is trying to get over by itself."""
        return next((text for text in self._troubles(version) if text.endswith(TRYING_AGAIN)), None)

    def is_backing_off(self, version: str) -> bool:
        """Whether ``version`` failed so recently that it is not tried again yet."""
        refusal = self.observed.state.refused.get(version)
        # One from the future was noted before the clock was set back.
        return refusal is not None and refusal.at <= self.now < refusal.retry_at

    def info(self, version: str) -> VersionInfo:
        """The registry's record of ``version``."""
        return self.desired.versions.get(version) or VersionInfo(version, problem="not in the registry")

    def blocker(self, version: str) -> str | None:
        """Why ``version`` is not being loaded, or None."""
        problem = self.info(version).problem
        if problem:
            return problem
        refusal = self.observed.state.refused.get(version)
        return refusal.error if refusal and self.is_backing_off(version) else None

    @property
    def aliased(self) -> tuple[str, ...]:
        """Versions of the aliases that matter, in their order of importance."""
        rest = (self.desired.aliases.get(PREVIOUS), self.shadow)
        found = [self.wished, *self.challengers.values(), *rest]
        return tuple(dict.fromkeys(version for version in found if version is not None))

    def _troubles(self, version: str) -> Iterator[str]:
        for row in self.rows:
            text = "ready" if row is None else row.loaded.get(version, "loading")
            if text not in ("ready", "loading"):
                yield _trouble(text)

    def _runs(self, app: str) -> bool:
        return app in self.apps and self.apps[app].status == "RUNNING"

    def _app_error(self, version: str) -> str | None:
        app = self.apps.get(self.told.get(version, {}).get("app", ""))
        if app is not None and app.status == "DEPLOY_FAILED":
            return app.message
        return None


def _trouble(text: str) -> str:
    """One line that a terminal only shows: names of a version's files are in it. Its end says whether the
    replica tries again, so a long one is cut before that."""
    said = plain(" ".join(text.removeprefix("error:").split()))
    end = f"…, {TRYING_AGAIN}" if said.endswith(TRYING_AGAIN) else ""
    return said if len(said) <= MOST_CHARS else said[: MOST_CHARS - len(end)] + end
