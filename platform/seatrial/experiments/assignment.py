"""Which arm of a trial a unit is in: a hash, no state and no I/O.

The hashes are GrowthBook's (SDK specification, `hash` and `getBucketRange`), so that a unit's arm can be
recomputed by any of its SDKs. Like its Python SDK they run over code points, whatever the script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_OFFSET = 0x811C9DC5
_PRIME = 0x01000193
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Arm:
    """One side of a trial: the alias it stands for, the version it serves, its share of the trial."""

    name: str
    version: str
    weight: float


@dataclass(frozen=True)
class TrialTable:
    """What a replica needs to split traffic. ``coverage`` is the share of all units that take part."""

    id: str
    seed: str
    coverage: float
    arms: tuple[Arm, ...]
    hash_version: int = 2

    def __post_init__(self) -> None:
        total = sum(arm.weight for arm in self.arms)
        if not self.arms or not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"arms: weights sum to {total}: give each arm its share, 1.0 in all")
        if any(arm.weight < 0 for arm in self.arms):
            raise ValueError("arms: a weight is negative: give shares between 0 and 1")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage: {self.coverage}: give a share above 0, at most 1")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialTable:
        """The table from the ``trial`` of a service's traffic. Unknown keys are for newer readers.

        Raises:
            ValueError, KeyError, TypeError: not a table.
        """
        arms = tuple(Arm(str(a["name"]), str(a["version"]), float(a["weight"])) for a in value["arms"])
        hash_version = int(value.get("hash_version", 2))
        return cls(str(value["id"]), str(value["seed"]), float(value["coverage"]), arms, hash_version)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that :meth:`from_json` reads."""
        return {
            "id": self.id,
            "seed": self.seed,
            "coverage": self.coverage,
            "hash_version": self.hash_version,
            "arms": [{"name": a.name, "version": a.version, "weight": a.weight} for a in self.arms],
        }

    @cached_property
    def ranges(self) -> tuple[tuple[float, float, Arm], ...]:
        """Half-open range of buckets of each arm, GrowthBook's `getBucketRanges`.

        An arm's range starts at the sum of the weights before it whatever the coverage, so a unit keeps its
        arm when coverage grows.
        """
        found, start = [], 0.0
        for arm in self.arms:
            found.append((start, start + self.coverage * arm.weight, arm))
            start += arm.weight
        return tuple(found)

    def arm(self, name: str) -> Arm:
        """The arm called ``name``; KeyError when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)


def fnv1a32(text: str) -> int:
    """32-bit FNV-1a over the code points of ``text``."""
    value = _OFFSET
    for point in map(ord, text):
        value = ((value ^ point) * _PRIME) & _MASK
    return value


def bucket(unit: str, seed: str, *, version: int = 2) -> float:
    """Where ``unit`` falls in [0, 1): version 2 has 10,000 buckets without version 1's bias.

    Raises:
        ValueError: a version other than 1 and 2.
    """
    if version == 2:
        return fnv1a32(str(fnv1a32(seed + unit))) % 10_000 / 10_000
    if version == 1:
        return fnv1a32(unit + seed) % 1_000 / 1_000
    raise ValueError(f"version: {version}: give 1 or 2")


def assign(unit: str, trial: TrialTable) -> Arm | None:
    """The arm of ``unit``, or None when it takes no part in the trial."""
    at = bucket(unit, trial.seed, version=trial.hash_version)
    for start, end, arm in trial.ranges:
        if start <= at < end:
            return arm
    # Weights that sum to 1 only within rounding leave a sliver at the top: it belongs to the last arm.
    return trial.arms[-1] if trial.coverage == 1.0 else None
