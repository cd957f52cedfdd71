"""Room that killed drivers left behind in the cluster, and when a job is started that gives it back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seatrial.submission.rayjobs import Group, RayJob

NAME = "seatrial-sweep"
EVERY_S = 300.0
LEFT_S = 30.0
"""Seconds after the end of a driver after which Ray will not remove what it held any more."""


@dataclass(frozen=True)
class Sweep:
    """Have what drivers left behind in the cluster given back."""

    ray_id: str


def due(groups: Iterable[Group], ray: Mapping[str, RayJob], now: float) -> Sweep | None:
    """One while something is left behind; another after `EVERY_S`, should it not have helped."""
    left = left_behind(groups, ray, now)
    if not left:
        return None
    ray_id = f"{NAME}-{left[0][:16]}-{int(now // EVERY_S)}"
    return None if ray_id in ray else Sweep(ray_id)


def left_behind(groups: Iterable[Group], ray: Mapping[str, RayJob], now: float) -> tuple[str, ...]:
    """Ids of the groups whose driver ended `LEFT_S` seconds ago or earlier, in order.

    Ray removes the groups of a driver that ends, but not those that were just being made when it was killed.
    """
    ended = {
        seen.job_id
        for seen in ray.values()
        if seen.has_ended and seen.ended_at is not None and now - seen.ended_at >= LEFT_S
    }
    return tuple(sorted(each.id for each in groups if each.driver in ended and not each.outlives))
