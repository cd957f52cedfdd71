"""Tables made from tables: more coverage, other weights, an arm less. As few units as can be change arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from seatrial.experiments.assignment import Range, TrialTable

_DUST = 1e-12


def with_coverage(table: TrialTable, coverage: float) -> TrialTable:
    """The table with another coverage: no unit goes from one arm to another.

    Without explicit ranges that is GrowthBook's own rule. With them, arms grow by their weights into buckets
    that nobody has yet, or shrink from the ends of theirs.

    Raises:
        ValueError: no share above 0, at most 1.
    """
    if table.ranges is None:
        return replace(table, coverage=coverage)
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage: {coverage}: give a share above 0, at most 1")
    ranges = list(table.ranges)
    if coverage < table.coverage:
        for arm in table.arms:
            keep = _measure(ranges, arm.name) * coverage / table.coverage
            _, ranges = _take(ranges, arm.name, _measure(ranges, arm.name) - keep)
    else:
        free = _gaps(ranges)
        step = min(coverage - table.coverage, sum(end - start for start, end, _ in free))
        for arm in table.arms:
            taken, free = _take(free, "", step * arm.weight)
            ranges += [(start, end, arm.name) for start, end in taken]
    return replace(table, coverage=coverage, ranges=_joined(ranges))


def reweight(table: TrialTable, weights: Mapping[str, float]) -> TrialTable:
    """The table with other weights: half the sum of their changes, the least there is, changes arm.

    Arms that shrink give from the ends of their ranges, those that grow take it in the table's order.

    Raises:
        ValueError: the names are not those of the arms, or the weights are none.
    """
    names = [arm.name for arm in table.arms]
    if sorted(weights) != sorted(names):
        raise ValueError(f"weights: {sorted(weights)}: give one for each of {sorted(names)}")
    arms = tuple(replace(arm, weight=weights[arm.name]) for arm in table.arms)
    ranges = list(table.spans)
    held = {name: _measure(ranges, name) for name in names}
    total = sum(held.values())
    owed = {name: weights[name] * total - held[name] for name in names}
    given: list[Range] = []
    for name in names:
        taken, ranges = _take(ranges, name, -owed[name])
        given += [(start, end, "") for start, end in taken]
    for name in names:
        taken, given = _take(given, "", owed[name])
        ranges += [(start, end, name) for start, end in taken]
    # What rounding has left over stays with whoever grows last.
    last = max(names, key=lambda name: owed[name])
    ranges += [(start, end, last) for start, end, _ in given]
    return replace(table, arms=arms, ranges=_joined(ranges), bucket_version=table.bucket_version + 1)


def drop(table: TrialTable, arm_name: str) -> TrialTable:
    """The table without one arm: its units leave the trial for good, nobody else moves.

    The other weights are what they are to each other; the coverage, of which the arm's buckets remain a part,
    stays as it is.

    Raises:
        KeyError: no such arm.
        ValueError: the arms that are left have no weight.
    """
    gone = table.arm(arm_name)
    rest = [arm for arm in table.arms if arm is not gone]
    total = sum(arm.weight for arm in rest)
    if total <= 0:
        raise ValueError(f"{arm_name}: no other arm has units: end the trial instead")
    arms = tuple(replace(arm, weight=arm.weight / total) for arm in rest)
    return replace(table, arms=arms, ranges=table.spans)


def _measure(ranges: list[Range], name: str) -> float:
    return sum(end - start for start, end, each in ranges if each == name)


def _take(ranges: list[Range], name: str, amount: float) -> tuple[list[tuple[float, float]], list[Range]]:
    """``amount`` of the buckets called ``name``, from the end of the last one; taken, and what is left."""
    taken: list[tuple[float, float]] = []
    left: list[Range] = []
    for start, end, each in sorted(ranges, reverse=True):
        part = min(amount, end - start) if each == name and amount > _DUST else 0.0
        if part > 0:
            taken.append((end - part, end))
            amount -= part
        if end - start - part > _DUST:
            left.append((start, end - part, each))
    return taken, sorted(left)


def _gaps(ranges: list[Range]) -> list[Range]:
    """Buckets that no range holds."""
    found, at = [], 0.0
    for start, end, _ in sorted(ranges):
        if start - at > _DUST:
            found.append((at, start, ""))
        at = max(at, end)
    return [*found, (at, 1.0, "")] if 1.0 - at > _DUST else found


def _joined(ranges: list[Range]) -> tuple[Range, ...]:
    """In order, with neighbours of one name made one; ends that differ by rounding meet."""
    found: list[Range] = []
    for start, end, name in sorted(ranges):
        if found and start - found[-1][1] <= _DUST:
            start = found[-1][1]
            if found[-1][2] == name:
                found[-1] = (found[-1][0], end, name)
                continue
        found.append((start, end, name))
    if found and 1.0 - found[-1][1] <= _DUST:
        found[-1] = (found[-1][0], 1.0, found[-1][2])
    return tuple(found)
