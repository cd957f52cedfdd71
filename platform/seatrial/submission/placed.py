"""What running jobs have taken of the cluster already, told from what others hold. Pure.

A job's driver starts long before its workers, and Ray says only how much of a node is used, not by whom.
What a job was promised is kept free until Ray has given it, and until Ray's report of what is used shows
that.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from seatrial.store.job import Job
from seatrial.submission.order import Room
from seatrial.submission.rayjobs import Group, RayJob
from seatrial.submission.recipes import MODULES

LAG_S = 10.0
"""Seconds after which the report of what is used shows all: Ray's autoscaler writes it every 5 s."""


@dataclass(frozen=True)
class Sight:
    """What attempts had been given at a time, by their submission ids."""

    at: float
    placed: Mapping[str, Room]


def reserved(job: Job) -> Room:
    """What Ray reserves for the job's command itself.

    Nothing for a recipe's job, and for a command of several workers: those take the room themselves.
    """
    if job.spec.recipe is not None or job.need.workers > 1 or _runs_module(job.spec.entrypoint):
        return Room()
    return Room(job.need.cpus, job.need.gpus)


def placed(jobs: Iterable[Job], ray: Mapping[str, RayJob], groups: Iterable[Group]) -> dict[str, Room]:
    """What Ray has given to each attempt that runs: its command's reservation and its placement groups."""
    held: dict[str, Room] = {}
    for group in groups:
        held[group.driver] = held.get(group.driver, Room()) + group.room
    found = {}
    for job in jobs:
        seen = ray.get(job.ray_id)
        if seen is not None and seen.status == "RUNNING":
            found[job.ray_id] = reserved(job) + held.get(seen.job_id, Room())
    return found


def kept(sights: Sequence[Sight], now: float) -> tuple[Sight, ...]:
    """Those that tell of the last `LAG_S` seconds: the younger ones, and the newest of the others."""
    known = [sight for sight in sights if sight.at <= now]
    old = [sight for sight in known if now - sight.at >= LAG_S]
    return (*old[-1:], *known[len(old) :])


def surely(sights: Sequence[Sight], now: float) -> dict[str, Room]:
    """What attempts have held for `LAG_S` seconds and hold now; nothing until it was looked for so long."""
    told = kept(sights, now)
    if not told or now - told[0].at < LAG_S:
        return {}
    return {
        each: Room(
            min(sight.placed.get(each, Room()).cpus for sight in told),
            min(sight.placed.get(each, Room()).gpus for sight in told),
        )
        for each in told[-1].placed
    }


def _runs_module(entrypoint: str) -> bool:
    """Whether it is one of our jobs after all, such as one whose recipe lies on another machine."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return False
    return any(word in MODULES for word in words)
