"""Which arm of a trial a unit is in: a hash, no state and no I/O.

The hashes are GrowthBook's (SDK specification, `hash`, `getBucketRange` and `inNamespace`), so that a unit's
arm can be recomputed by its SDKs. Like those for JavaScript and Python they run over UTF-16 code units.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

_OFFSET = 0x811C9DC5
_UTF16 = "utf-16-le" if sys.byteorder == "little" else "utf-16-be"
# One seed for all services: whoever is held out is in no trial of any of them.
HOLDOUT_SEED = "__holdout"

# Of each version of the hash.
BUCKETS = {1: 1_000, 2: 10_000}

Range = tuple[float, float, str]
"""Buckets from the first up to, not including, the second, and the arm's name."""


@dataclass(frozen=True)
class Arm:
    """One side of a trial: the alias it stands for, the version it serves, its share of the trial."""

    name: str
    version: str
    weight: float


@dataclass(frozen=True)
class Namespace:
    """Trials that exclude each other: units in [start, end) of the namespace's own buckets take part."""

    name: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"namespace: [{self.start}, {self.end}): give 0 <= start < end <= 1")

    def overlaps(self, other: Namespace) -> bool:
        """Whether some unit may take part in both."""
        return self.name == other.name and self.start < other.end and other.start < self.end

    def holds(self, unit: str) -> bool:
        """Whether ``unit`` may take part."""
        return self.start <= bucket(unit, f"__{self.name}", version=1) < self.end


@dataclass(frozen=True)
class TrialTable:
    """What a replica needs to split traffic. ``coverage`` is the share of all units that take part.

    ``ranges``, where given, say who is in which arm in place of the weights; buckets of a name that is no
    arm's are those of one that was dropped: they are out of the trial for good. ``holdout`` is the share of
    units that no trial touches. ``bucket_version`` grows whenever weights change.
    """

    id: str
    seed: str
    coverage: float
    arms: tuple[Arm, ...]
    hash_version: int = 2
    ranges: tuple[Range, ...] | None = None
    namespace: Namespace | None = None
    holdout: float = 0.0
    bucket_version: int = 0

    def __post_init__(self) -> None:
        total = sum(arm.weight for arm in self.arms)
        if not self.arms or not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"arms: weights sum to {total}: give each arm its share, 1.0 in all")
        if any(arm.weight < 0 for arm in self.arms):
            raise ValueError("arms: a weight is negative: give shares between 0 and 1")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage: {self.coverage}: give a share above 0, at most 1")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout: {self.holdout}: give a share from 0 up to, not including, 1")
        if any(not 0 <= start <= end <= 1 for start, end, _ in self.ranges or ()):
            raise ValueError(f"ranges: {self.ranges}: give 0 <= start <= end <= 1 for each")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialTable:
        """The table from the ``trial`` of a service's traffic. Unknown keys are for newer readers.

        Raises:
            ValueError, KeyError, TypeError: not a table.
        """
        arms = tuple(Arm(str(a["name"]), str(a["version"]), float(a["weight"])) for a in value["arms"])
        ranges, namespace = value.get("ranges"), value.get("namespace")
        return cls(
            str(value["id"]),
            str(value["seed"]),
            float(value["coverage"]),
            arms,
            int(value.get("hash_version", 2)),
            None if ranges is None else tuple((float(s), float(e), str(name)) for s, e, name in ranges),
            None if namespace is None else _namespace(namespace),
            float(value.get("holdout", 0.0)),
            int(value.get("bucket_version", 0)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that :meth:`from_json` reads; what older tables did not have is left out when unused."""
        found: dict[str, Any] = {
            "id": self.id,
            "seed": self.seed,
            "coverage": self.coverage,
            "hash_version": self.hash_version,
            "arms": [{"name": a.name, "version": a.version, "weight": a.weight} for a in self.arms],
        }
        if self.ranges is not None:
            found["ranges"] = [list(each) for each in self.ranges]
        if self.namespace is not None:
            found["namespace"] = vars(self.namespace).copy()
        if self.holdout:
            found["holdout"] = self.holdout
        if self.bucket_version:
            found["bucket_version"] = self.bucket_version
        return found

    @cached_property
    def spans(self) -> tuple[Range, ...]:
        """Half-open range of buckets of each arm: ``ranges``, or GrowthBook's `getBucketRanges`.

        In the latter an arm's range starts at the sum of the weights before it whatever the coverage, so a
        unit keeps its arm when coverage grows. Edges are rounded to 12 places: 0.9 + 0.05 is 0.95, or the
        arm would lose the bucket that starts there.
        """
        if self.ranges is not None:
            return self.ranges
        found, start = [], 0.0
        for arm in self.arms:
            found.append((start, min(1.0, round(start + self.coverage * arm.weight, 12)), arm.name))
            start = round(start + arm.weight, 12)
        if self.coverage == 1.0:
            # Weights that sum to 1 only within rounding leave a sliver at the top: it is the last arm's.
            found[-1] = (found[-1][0], 1.0, found[-1][2])
        return tuple(found)

    @cached_property
    def bucket_shares(self) -> Mapping[str, float]:
        """Arm → its share of the buckets that are in an arm: what the hash can give, which has no others.

        The weights where some arm has no bucket at all.
        """
        grid = _grid(self.hash_version)
        held = dict.fromkeys((arm.name for arm in self.arms), 0)
        for start, end, name in self.spans:
            if name in held:
                held[name] += max(0, bisect_left(grid, end) - bisect_left(grid, start))
        if not all(held.values()):
            return {arm.name: arm.weight for arm in self.arms}
        return {name: buckets / sum(held.values()) for name, buckets in held.items()}

    @cached_property
    def by_name(self) -> Mapping[str, Arm]:
        """Name → arm."""
        return {arm.name: arm for arm in self.arms}

    def arm(self, name: str) -> Arm:
        """The arm called ``name``; KeyError when there is none."""
        return self.by_name[name]


@cache
def _grid(version: int) -> tuple[float, ...]:
    """Every value that `bucket` can give, growing."""
    return tuple(at / BUCKETS[version] for at in range(BUCKETS[version]))


def _namespace(value: Mapping[str, Any]) -> Namespace:
    return Namespace(str(value["name"]), float(value["start"]), float(value["end"]))


def fnv1a32(text: str, start: int = _OFFSET) -> int:
    """32-bit FNV-1a over the UTF-16 code units of ``text``, going on from the hash ``start``."""
    value = start
    for unit in text.encode() if text.isascii() else _code_units(text):
        # The prime and the mask as constants: looked up by name they take a quarter of the time.
        value = (value ^ unit) * 0x01000193 & 0xFFFFFFFF
    return value


def _code_units(text: str) -> memoryview[int]:
    """UTF-16 code units, also of text that holds half a pair."""
    return memoryview(text.encode(_UTF16, "surrogatepass")).cast("H")


_hash_of_seed = lru_cache(maxsize=1024)(fnv1a32)


def bucket(unit: str, seed: str, *, version: int = 2) -> float:
    """Where ``unit`` falls in [0, 1): version 2 has 10,000 buckets without version 1's bias.

    Raises:
        ValueError: a version other than 1 and 2.
    """
    if version == 2:
        return fnv1a32(str(fnv1a32(unit, _hash_of_seed(seed)))) % 10_000 / 10_000
    if version == 1:
        return fnv1a32(unit + seed) % 1_000 / 1_000
    raise ValueError(f"version: {version}: give 1 or 2")


def assign(unit: str, trial: TrialTable, sticky: Mapping[str, str] | None = None) -> Arm | None:
    """The arm of ``unit``, or None when it takes no part in the trial.

    ``sticky`` holds the arm's name of units that were exposed before: they stay there, or leave the trial
    with an arm that was dropped.
    """
    kept = sticky.get(unit) if sticky else None
    if kept is not None:
        return trial.by_name.get(kept)
    if trial.holdout and bucket(unit, HOLDOUT_SEED) < trial.holdout:
        return None
    if trial.namespace is not None and not trial.namespace.holds(unit):
        return None
    at = bucket(unit, trial.seed, version=trial.hash_version)
    for start, end, name in trial.spans:
        if start <= at < end:
            return trial.by_name.get(name)
    return None
