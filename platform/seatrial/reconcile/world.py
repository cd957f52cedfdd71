"""The values that planning works on. Nothing here does any I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from seatrial.experiments.evidence import Evidence
from seatrial.experiments.record import Anchor, ChampionMove
from seatrial.experiments.trial import Decision, Trial

# vLLM loads these; adapters run inside the base's engine, the others in an application of their own.
ADAPTER_KINDS = ("adapter",)
FULL_KINDS = ("full", "int8")

FATAL_LOAD = "loading it ended"
"""In a replica's error: the version took the engine, or the whole process, along."""

Phase = Literal["starting", "waiting", "loading", "serving", "trial", "failed", "deleting"]


@dataclass(frozen=True)
class VersionInfo:
    """One registered version. ``problem`` says why it can never be served; then nothing else is known."""

    version: str
    kind: str = ""
    digest: str = ""
    problem: str | None = None
    load_error: str | None = None
    """The tag that says why it could not be loaded."""
    exists: bool = True

    @property
    def is_full(self) -> bool:
        """Whether it needs an application of its own."""
        return self.kind in FULL_KINDS


@dataclass(frozen=True)
class DesiredService:
    """What people asked for: the service's configuration and the aliases of its registered model."""

    name: str
    config: Mapping[str, Any]
    route_prefix: str
    base_ref: str
    aliases: Mapping[str, str]
    versions: Mapping[str, VersionInfo]
    config_at: float
    deleted_at: float | None = None
    """When a person asked for its deletion."""
    is_read: bool = True
    """Whether the registry said so just now; else ``aliases`` are those that the running trial began with."""


@dataclass(frozen=True)
class Refusal:
    """A version that could not be loaded: why, when last, and how often."""

    error: str
    at: float
    tries: int

    @property
    def retry_at(self) -> float:
        """When it may be tried again: after 1, 2, 4 … minutes, at most an hour.

        Never once loading it has ended an engine, which answers for the champion too: a person sets the
        alias anew.
        """
        if FATAL_LOAD in self.error:
            return math.inf
        return self.at + min(3600.0, 60.0 * 2.0 ** min(self.tries - 1, 6))


@dataclass(frozen=True)
class ServiceState:
    """What the controller remembers of a service between passes; all else is read anew."""

    phase: Phase = "starting"
    message: str = ""
    served: str | None = None
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    config_at: float = 0.0
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """What the replicas were built from when they last all ran."""
    move: ChampionMove | None = None
    """The move by hand whose record was begun: it is finished whatever becomes of the alias meanwhile."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ServiceState:
        """The inverse of :meth:`to_json`; missing keys get their defaults."""
        refused = {version: Refusal(**each) for version, each in value.get("refused", {}).items()}
        move = ChampionMove(**value["move"]) if value.get("move") else None
        return cls(**{**value, "refused": refused, "move": move})


@dataclass(frozen=True)
class ReplicaStatus:
    """What a replica last said of itself; ``loaded`` maps a version to ready, loading or an error."""

    replica_id: str
    revision: str
    loaded: Mapping[str, str]
    at: float


@dataclass(frozen=True)
class AppStatus:
    """A Ray Serve application. ``config`` is exactly what was last PUT, None for one started by code.

    ``message`` is one line: the cause when something is wrong or late. ``told_at`` is when it was last PUT.
    """

    name: str
    status: str
    message: str
    config: Mapping[str, Any] | None
    replica_ids: tuple[str, ...]
    told_at: float = 0.0


@dataclass(frozen=True)
class ObservedService:
    """What is known of a service. ``trial`` is the one that is not closed."""

    state: ServiceState = ServiceState()
    replicas: tuple[ReplicaStatus, ...] = ()
    trial: Trial | None = None
    decision: Decision | None = None
    evidence: Evidence | None = None
    last_look_units: int = 0
    trials_so_far: int = 0
    last_anchor: Anchor | None = None
    """Of the newest audit record: who was champion then."""


@dataclass(frozen=True)
class Observed:
    """All applications of the Ray cluster, and every service."""

    apps: Mapping[str, AppStatus]
    services: Mapping[str, ObservedService]


@dataclass(frozen=True)
class Desired:
    """Every service."""

    services: tuple[DesiredService, ...]
