"""What changes when coverage grows, weights move, an arm leaves: as little as can be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.experiments.assignment import Arm, Namespace, TrialTable, assign, bucket
from seatrial.experiments.reassignment import drop, reweight, with_coverage

BUCKETS = [index / 10_000 for index in range(10_000)]


def table(weights: tuple[float, ...], coverage: float = 1.0, **values) -> TrialTable:
    arms = tuple(Arm(f"arm{index}", str(index), weight) for index, weight in enumerate(weights))
    return TrialTable("t-1", "seed", coverage, arms, **values)


def owners(trial: TrialTable) -> list[str | None]:
    """The arm of each of the 10,000 buckets."""
    names = {arm.name for arm in trial.arms}

    def owner(at: float) -> str | None:
        found = next((name for start, end, name in trial.spans if start <= at < end), None)
        return found if found in names else None

    return [owner(at) for at in BUCKETS]


parts = st.lists(st.integers(1, 20), min_size=2, max_size=5)
weights = parts.map(lambda found: tuple(each / sum(found) for each in found))
coverages = st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9, 1.0])


@st.composite
def changed(draw):
    """A table with a history of other weights, coverages and a dropped arm."""
    first = draw(weights)
    trial = table(first, draw(coverages))
    for _ in range(draw(st.integers(0, 2))):
        found = draw(st.lists(st.integers(1, 20), min_size=len(first), max_size=len(first)))
        trial = reweight(trial, {f"arm{i}": each / sum(found) for i, each in enumerate(found)})
        if trial.coverage < 1.0:
            trial = with_coverage(trial, draw(st.floats(trial.coverage, 1.0)))
    return drop(trial, "arm1") if len(first) > 2 and draw(st.booleans()) else trial


@settings(deadline=None, max_examples=60)
@given(changed(), st.floats(0, 1))
def test_growing_coverage_never_changes_an_arm(trial, more):
    wider = with_coverage(trial, trial.coverage + (1 - trial.coverage) * more)
    before, after = owners(trial), owners(wider)
    assert all(old is None or old == new for old, new in zip(before, after, strict=True))


@settings(deadline=None, max_examples=60)
@given(changed(), st.data())
def test_other_weights_move_exactly_the_minimum(trial, data):
    count = len(trial.arms)
    found = data.draw(st.lists(st.integers(1, 20), min_size=count, max_size=count))
    wanted = {arm.name: each / sum(found) for arm, each in zip(trial.arms, found, strict=True)}
    after = reweight(trial, wanted)
    held = {arm.name: sum(e - s for s, e, name in trial.spans if name == arm.name) for arm in trial.arms}
    total = sum(held.values())
    least = sum(abs(wanted[name] * total - held[name]) for name in held) / 2
    old, new = owners(trial), owners(after)
    moved = sum(a != b for a, b in zip(old, new, strict=True))
    # Every boundary may fall between two buckets.
    slack = len(trial.spans) + len(after.spans)
    assert moved <= least * 10_000 + slack
    assert sum(a is None for a in old) == pytest.approx(sum(a is None for a in new), abs=slack)
    for name, share in wanted.items():
        assert new.count(name) == pytest.approx(share * total * 10_000, abs=slack)
    assert after.bucket_version == trial.bucket_version + 1


@settings(deadline=None, max_examples=60)
@given(changed(), st.floats(0, 1))
def test_growing_coverage_keeps_the_arms_ratio(trial, more):
    wider = with_coverage(trial, trial.coverage + (1 - trial.coverage) * more)
    found = owners(wider)
    total = len(found) - found.count(None)
    for arm in wider.arms:
        assert found.count(arm.name) == pytest.approx(arm.weight * total, abs=3 * len(wider.spans))


@settings(deadline=None, max_examples=40)
@given(weights.filter(lambda found: len(found) > 2), coverages)
def test_the_units_of_a_dropped_arm_leave_for_good_and_nobody_else_moves(shares, coverage):
    trial = table(shares, coverage)
    rest = drop(trial, "arm1")
    for old, new in zip(owners(trial), owners(rest), strict=True):
        assert new == (None if old == "arm1" else old)
    grown = owners(with_coverage(rest, 1.0))
    assert all(new is None for old, new in zip(owners(trial), grown, strict=True) if old == "arm1")
    assert sum(arm.weight for arm in rest.arms) == pytest.approx(1.0)


@settings(deadline=None, max_examples=40)
@given(changed(), st.text(min_size=1))
def test_a_changed_table_survives_json(trial, unit):
    again = TrialTable.from_json(trial.to_json())
    assert again == trial
    assert assign(unit, again) == assign(unit, trial)


def test_less_coverage_lets_units_go_and_moves_nobody():
    trial = reweight(table((0.5, 0.5)), {"arm0": 0.3, "arm1": 0.7})
    half = owners(with_coverage(trial, 0.5))
    assert all(new is None or old == new for old, new in zip(owners(trial), half, strict=True))
    assert len(half) - half.count(None) == pytest.approx(5000, abs=5)


@given(st.text(), st.sampled_from(["arm0", "arm1"]))
def test_those_who_were_exposed_stay_where_they_were(unit, name):
    trial = reweight(table((0.5, 0.5)), {"arm0": 0.1, "arm1": 0.9})
    assert assign(unit, trial, {unit: name}) == trial.arm(name)
    assert assign(unit, trial, {"": ""} if unit else {}) == assign(unit, trial)


def test_those_of_a_dropped_arm_are_out_even_if_their_bucket_is_not():
    trial = drop(table((0.5, 0.25, 0.25)), "arm2")
    assert assign("somebody", trial, {"somebody": "arm2"}) is None


def test_the_holdout_is_the_same_for_every_trial_and_is_in_none():
    trials = [table((0.5, 0.5), holdout=0.2), table((0.1, 0.9), hash_version=1, holdout=0.2)]
    units = [f"user-{number}" for number in range(5_000)]
    out = [{unit for unit in units if assign(unit, trial) is None} for trial in trials]
    assert out[0] == out[1]
    assert len(out[0]) / 5_000 == pytest.approx(0.2, abs=0.02)


def test_trials_in_parts_of_a_namespace_share_no_unit():
    first, second = (table((0.5, 0.5), namespace=Namespace("home", *part)) for part in ((0, 0.4), (0.4, 1)))
    for unit in (f"user-{number}" for number in range(2_000)):
        assert (assign(unit, first) is None) != (assign(unit, second) is None)


def test_the_namespace_is_growthbooks():
    at = bucket("1", "__namespace", version=1)
    assert Namespace("namespace", at, 1.0).holds("1")
    assert not Namespace("namespace", 0.0, at).holds("1")


def test_changes_that_cannot_be_are_refused():
    trial = table((0.5, 0.5))
    with pytest.raises(ValueError, match="give one for each"):
        reweight(trial, {"arm0": 1.0})
    with pytest.raises(ValueError, match="give each arm"):
        reweight(trial, {"arm0": 0.5, "arm1": 0.6})
    with pytest.raises(ValueError, match="coverage"):
        with_coverage(reweight(trial, {"arm0": 0.4, "arm1": 0.6}), 0.0)
    with pytest.raises(KeyError):
        drop(trial, "arm7")
    with pytest.raises(ValueError, match="namespace"):
        Namespace("home", 0.5, 0.5)
