"""Room in the cluster that is held for workers that are gone, and how it is given back.

Ray keeps a placement group until both its job and the actor that made it have ended. What starts the workers
of a trial is ended with the trial, while the search goes on: the group stays, empty, and a trial that comes
later finds no room (ray#54305). One that is being made while its job is killed stays for good: the trainer
may lose its workers a moment before it is ended itself, and ask for others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

IDLE_S = 20.0
"""Seconds without any use after which a group is taken for one that was left behind; Ray leases what a worker
needs before it starts the worker's process."""
LOOK_EVERY_S = 1.0
LEAVE_S = 20.0
"""Seconds in which what holds room for this job may end."""
LEAVE_LOOK_S = 0.1

Resources = Mapping[str, float]


def unused(groups: Mapping[str, Collection[Resources]], free: Resources) -> set[str]:
    """Of the groups by id, with the resources of their bundles, those of which nobody uses anything.

    ``free`` is the cluster's: what is free of a group's CPUs is in it as `CPU_group_ID`.
    """

    def is_unused(group: str, bundles: Collection[Resources]) -> bool:
        total: dict[str, float] = {}
        for bundle in bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0.0) + amount
        return all(free.get(f"{name}_group_{group}", 0.0) >= amount for name, amount in total.items())

    return {group for group, bundles in groups.items() if is_unused(group, bundles)}


@contextmanager
def swept(idle_s: float = IDLE_S) -> Iterator[None]:
    """Meanwhile, give back the groups of this job that were left behind."""
    over = threading.Event()
    sweeper = threading.Thread(target=_sweep, args=(over, idle_s), name="groups", daemon=True)
    sweeper.start()
    try:
        yield
    finally:
        over.set()
        sweeper.join()


def leave() -> None:
    """Give back all groups of this job, whose work is done and which disconnects next."""
    end, looks = time.monotonic() + LEAVE_S, 0
    while looks < 3 and time.monotonic() < end:  # without any, in a row
        present = _mine()
        looks = 0 if present else looks + 1
        for group in present:
            _remove(group)
        time.sleep(LEAVE_LOOK_S)


def reclaim() -> int:
    """Give back the groups that jobs which have ended left behind; how many there were.

    One with a detached lifetime is meant to outlive its job.
    """
    left = _left_behind()
    for group in left:
        _remove(group)
    return len(left)


def _sweep(over: threading.Event, idle_s: float) -> None:
    import ray

    since: dict[str, float] = {}
    while not over.wait(min(LOOK_EVERY_S, idle_s / 4)):
        now = time.monotonic()
        idle = unused(_mine(), ray.available_resources())
        since = {group: since.get(group, now) for group in idle}
        for group, began in since.items():
            if now - began >= idle_s:
                _remove(group)


def _mine() -> dict[str, list[Resources]]:
    """The bundles of this job's groups that are in place; a group's id ends with its job's."""
    import ray
    from ray.util import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    return {
        str(each["placement_group_id"]): list(each["bundles"].values())
        for each in placement_group_table().values()
        if each["state"] == "CREATED" and str(each["placement_group_id"]).endswith(job)
    }


def _left_behind() -> list[str]:
    from ray._private.state import jobs, state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    # No public call tells whether a group is detached. In this order: its job was there before it.
    rows = state._connect_and_get_accessor().get_placement_group_table()
    groups = [PlacementGroupTableData.FromString(row) for row in rows]
    ended = {each["JobID"] for each in jobs() if each["IsDead"]}
    return [
        each.placement_group_id.hex()
        for each in groups
        if each.state != PlacementGroupTableData.REMOVED
        and not each.is_detached
        and each.creator_job_id.hex() in ended
    ]


def _remove(group: str) -> None:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
