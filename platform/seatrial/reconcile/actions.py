"""What a plan may ask for. Each action can be done twice with the same result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seatrial.experiments.record import ChampionMove
from seatrial.experiments.trial import Decision, Look, Trial
from seatrial.reconcile.world import ServiceState


@dataclass(frozen=True)
class Action:
    """One side effect for one service."""

    service: str


@dataclass(frozen=True)
class PutApps(Action):
    """Give Ray Serve these applications, and leave those that are not ``owned`` as they are."""

    apps: tuple[Mapping[str, Any], ...]
    owned: tuple[str, ...]


@dataclass(frozen=True)
class PutState(Action):
    """Remember the state."""

    state: ServiceState


@dataclass(frozen=True)
class RemoveService(Action):
    """Forget the service whose deletion was asked for then, unless it was deployed again since."""

    deleted_at: float


@dataclass(frozen=True)
class OpenTrial(Action):
    """Insert the trial."""

    trial: Trial


@dataclass(frozen=True)
class ChangeTrial(Action):
    """Give the open trial another table, and keep the look that asked for it, in one step."""

    trial: Trial
    look: Look | None = None


@dataclass(frozen=True)
class AddLook(Action):
    """Keep a point of the trial's interval."""

    look: Look


@dataclass(frozen=True)
class Decide(Action):
    """Insert the decision, with all its evidence and the look that it came from, in one step."""

    decision: Decision
    look: Look | None = None


@dataclass(frozen=True)
class MoveAlias(Action):
    """Point an alias at ``version`` (None removes it), if it points at ``expected`` now."""

    alias: str
    version: str | None
    expected: str | None


@dataclass(frozen=True)
class TagVersion(Action):
    """Set a tag of a version; None removes it."""

    version: str
    key: str
    value: str | None


@dataclass(frozen=True)
class WriteAudit(Action):
    """Write the decision's audit record, and keep its hash."""

    trial: Trial
    decision: Decision


@dataclass(frozen=True)
class WriteMove(Action):
    """Write the audit record of a champion that was moved by hand, and keep its hash."""

    move: ChampionMove


@dataclass(frozen=True)
class MarkStep(Action):
    """Note that a closing step of the trial is done."""

    trial_id: str
    step: str


@dataclass(frozen=True)
class CloseTrial(Action):
    """Close the decided trial."""

    decision: Decision
