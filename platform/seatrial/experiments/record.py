"""What the audit chain is made of, beside trials and their decisions."""

from __future__ import annotations

from dataclasses import dataclass

# Between the service and the rest of a move's key. No service's name has it, so no trial's id does.
MOVE_MARK = "--"


def service_of(key: str) -> str:
    """The service whose record has this key."""
    return key.split(MOVE_MARK)[0] if MOVE_MARK in key else key.rpartition("-")[0]


@dataclass(frozen=True)
class ChampionMove:
    """A champion that was moved outside of any trial. ``key`` names the move for good, whoever writes it."""

    key: str
    service: str
    before: str
    after: str
    actor: str


@dataclass(frozen=True)
class Anchor:
    """What the store keeps of a record: its place in the service's chain, its hash, whom it left champion."""

    key: str
    service: str
    sequence: int
    hash: str
    champion: str | None
