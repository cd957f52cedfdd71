"""What the audit chain is made of, beside trials and their decisions."""

from __future__ import annotations

from dataclasses import dataclass


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
