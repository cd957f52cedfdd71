"""The traffic table: which version answers a request. A pure function of table, model and unit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from seatrial.experiments.assignment import TrialTable, assign
from seatrial_serving.errors import HttpError

CHAMPION = "champion"
NOBODY: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. ``trial`` and ``arm`` are empty outside trials and for pinned requests."""

    version: str
    assigned: str
    trial: str = ""
    arm: str = ""
    unit: str = ""
    is_sticky: bool = False
    is_pinned: bool = False

    @property
    def is_fallback(self) -> bool:
        """Whether the assigned version could not answer, and the champion did."""
        return self.version != self.assigned


@dataclass(frozen=True, slots=True)
class Shadow:
    """The version that sees copies of this share of the champion's requests."""

    version: str
    share: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shadow:
        """From the `shadow` of the traffic; ValueError, KeyError or TypeError when it is none."""
        share = float(value.get("share", 1.0))
        if not 0 <= share <= 1:
            raise ValueError(f"shadow.share: {share}: give a share from 0 to 1")
        return cls(str(value["version"]), share)


@dataclass(frozen=True)
class Table:
    """One revision of a service's traffic."""

    service: str
    revision: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    trial: TrialTable | None = None
    shadow: Shadow | None = None
    refusal_phrases: tuple[str, ...] = ()
    """What an answer that refuses begins with, in lower case."""

    @classmethod
    def from_json(cls, service: str, revision: str, traffic: Mapping[str, Any] | None) -> Table:
        """The table from the `traffic` of a user_config.

        Raises:
            ValueError, KeyError, TypeError: not a table.
        """
        if traffic is None:
            return cls(service, revision)
        trial = traffic.get("trial")
        aliases = {str(alias): str(version) for alias, version in traffic["aliases"].items()}
        shadow = traffic.get("shadow")
        return cls(
            service,
            revision,
            aliases,
            TrialTable.from_json(trial) if trial else None,
            Shadow.from_json(shadow) if shadow else None,
            tuple(str(phrase).lower() for phrase in traffic.get("refusal_phrases") or ()),
        )

    @property
    def keeps_units(self) -> bool:
        """Whether weights have changed, so that units that were exposed before stay where they were."""
        return self.trial is not None and self.trial.bucket_version > 0

    @property
    def needed(self) -> frozenset[str]:
        """The versions that must be ready before this table may be used."""
        champion = self.aliases.get(CHAMPION)
        arms = [arm.version for arm in self.trial.arms] if self.trial else []
        return frozenset([champion, *arms] if champion else arms)

    def route(
        self,
        model: object,
        unit: str | None,
        request_id: str,
        ready: Collection[str],
        sticky: Mapping[str, str] = NOBODY,
    ) -> Route:
        """Choose the version for one request.

        ``model`` is `SERVICE` (the split decides), `SERVICE@ALIAS` or `SERVICE@VERSION` (pinned); ``ready``
        are the versions loaded here. Without a unit the request is its own unit, and not sticky.
        ``sticky`` is the arm of units that were exposed before the weights changed.

        Raises:
            HttpError: 404 for a model that is not served, 503 when there is no champion.
        """
        if model == self.service:
            return self._split(unit, request_id, ready, sticky)
        name, _, suffix = model.partition("@") if isinstance(model, str) else ("", "", "")
        version = self.aliases.get(suffix, suffix)
        if name != self.service or version not in ready:
            raise HttpError(
                404,
                f"model: {str(model)[:100]!r}: not served here: use {self.service!r}",
                param="model",
                code="model_not_found",
            )
        return Route(version, version, is_pinned=True)

    def without(self, route: Route, ready: Collection[str]) -> Route | None:
        """Where a trial's request goes when its version cannot answer; None when nothing else can."""
        champion = self.aliases.get(CHAMPION)
        if not route.trial or champion is None or champion == route.version or champion not in ready:
            return None
        return Route(champion, route.assigned, route.trial, route.arm, route.unit, route.is_sticky)

    def _split(
        self, unit: str | None, request_id: str, ready: Collection[str], sticky: Mapping[str, str]
    ) -> Route:
        champion = self.aliases.get(CHAMPION)
        known = sticky if self.keeps_units else None
        arm = assign(unit or request_id, self.trial, known) if self.trial else None
        if arm is not None and self.trial is not None:
            version = arm.version if arm.version in ready else champion
            if version in ready and version is not None:
                is_sticky = unit is not None
                return Route(version, arm.version, self.trial.id, arm.name, unit or request_id, is_sticky)
        if champion is None or champion not in ready:
            raise HttpError(
                503,
                f"{self.service}: no champion: set the alias `champion` on a version in MLflow",
                code="no_champion",
            )
        return Route(champion, champion)
