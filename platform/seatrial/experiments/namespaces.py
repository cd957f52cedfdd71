"""Whether trials that are to exclude each other do: parts of one namespace must not overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from seatrial.experiments.assignment import Namespace, TrialTable

FIELD = "trial.namespace"


def namespace_of(policy: Mapping[str, Any]) -> Namespace | None:
    """The part that a policy, as a service file has it, takes for its trials."""
    section = policy.get("namespace")
    return Namespace(**section) if section else None


def running(tables: Mapping[str, TrialTable]) -> dict[str, Namespace]:
    """Service → the part that its trial has, of those that have one."""
    return {service: table.namespace for service, table in tables.items() if table.namespace is not None}


def overlapping(mine: Namespace | None, others: Mapping[str, Namespace]) -> dict[str, Namespace]:
    """Those whose users are some of mine, by service."""
    if mine is None:
        return {}
    return {service: each for service, each in others.items() if mine.overlaps(each)}


def trouble(mine: Namespace | None, others: Mapping[str, Namespace], *, runs: bool = False) -> str | None:
    """The field, its value, whom it overlaps and what to do; None when nobody is overlapped.

    ``runs`` says that the others' trials are under way, so that waiting helps too.
    """
    found = overlapping(mine, others)
    if mine is None or not found:
        return None
    whose = " and ".join(f"{_told(each)} of {service}" for service, each in sorted(found.items()))
    free = ", ".join(f"{start:g} to {end:g}" for start, end in _free(mine.name, others.values()))
    part = f"give a part that is free: {free}" if free else "nothing is free: make another service's smaller"
    wait = "whose trial runs: wait for its end, or " if runs else ""
    return f"{FIELD}: {_told(mine)}: overlaps {whose}{',' if runs else ':'} {wait}{part}"


def _told(each: Namespace) -> str:
    return f"{each.name} {each.start:g} to {each.end:g}"


def _free(name: str, others: Iterable[Namespace]) -> list[tuple[float, float]]:
    """Parts of the namespace that no other has."""
    found, at = [], 0.0
    for each in sorted((each for each in others if each.name == name), key=lambda each: each.start):
        if each.start > at:
            found.append((at, each.start))
        at = max(at, each.end)
    return [*found, (at, 1.0)] if at < 1 else found
