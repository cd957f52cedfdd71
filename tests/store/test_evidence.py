"""Evidence that is kept as it comes in equals a recount, whatever comes twice, late, or in between."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event

from seatrial.experiments.evidence import Evidence
from seatrial.experiments.reassignment import drop, with_coverage
from seatrial.experiments.trial import Trial
from seatrial.store import Store, folding
from seatrial.store.tables import evidence_sums, exposures, outcomes, trials
from tests.store.rows import exposure, outcome, trial

REQUESTS, UNITS = 12, 5
names = (f"svc{number}" for number in itertools.count())
numbers = st.one_of(st.floats(-1e15, 1e15), st.sampled_from([0.0, 1.0, 0.1, 1e-9, 1e15, -1e15]))

exposing = st.tuples(st.just("expose"), st.lists(st.integers(0, REQUESTS - 1), min_size=1, max_size=4))
telling = st.tuples(st.just("tell"), st.integers(0, REQUESTS - 1), numbers)
speaking = st.tuples(st.just("speak"), st.integers(0, UNITS - 1), numbers, st.floats(0, 20))
looking = st.tuples(st.just("look"))
stories = st.lists(st.one_of(exposing, telling, speaking, looking), max_size=25)


def request(name: str, number: int) -> dict[str, Any]:
    """The same row each time: some fail, some fall back, some units are in both arms."""
    unit = number % UNITS
    arm = "challenger" if unit % 2 or number == 10 else "champion"
    error = {3: (500, "boom"), 7: (499, "gone")}.get(number, (200, None))
    more = {"status": error[0], "error": error[1], "fallback": number == 5, "at": float(number)}
    return exposure(f"{name}-r{number}", f"u{unit}", arm, service=name, trial_id=f"{name}-1", **more)


def do(store: Store, name: str, step: tuple[Any, ...]) -> None:
    match step:
        case "expose", these:
            store.add_exposures([request(name, number) for number in these])
        case "tell", number, value:
            store.add_outcomes([outcome(f"{name}-r{number}", value, service=name, client_id=f"{value}")])
        case "speak", unit, value, at:
            told = {"service": name, "unit": f"u{unit}", "client_id": f"{at}{value}", "now": at}
            store.add_outcomes([outcome(None, value, **told)])


def recount(store: Store, made: Trial) -> Evidence:
    """The evidence of all rows, as if nobody had looked before."""
    with store.engine.begin() as connection:
        connection.execute(delete(evidence_sums).where(evidence_sums.c.trial_id == made.id))
    return store.evidence(made, now=5.0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=stories)
def test_what_is_kept_equals_a_recount_to_the_last_bit(store: Store, story: list[Any]) -> None:
    name = next(names)
    made = replace(trial(service=name, metric={"type": "mean", "missing": "exclude"}), opened_at=1.5)
    store.open_trial(made)
    for step in story:
        if step == ("look",):
            store.evidence(made, now=5.0)
        else:
            do(store, name, step)
    kept = store.evidence(made, now=5.0)
    assert kept == recount(store, made)
    for arm in kept.arms:
        assert (arm.stats.n, arm.stats.total) == by_hand(store, name, arm.name)
    found = store.outcome_counts(name)
    assert found == counts_by_hand(store, name)
    # Told after the trial had opened: the trial's own report has those alone.
    assert kept.early_outcomes == early_by_hand(store, name, since=1.5) <= found["early"]


def counts(joined: int = 0, **others: int) -> dict[str, int]:
    return {"joined": joined, "unknown": 0, "early": 0, "late": 0, **others}


def by_hand(store: Store, name: str, arm: str) -> tuple[int, float]:
    """Units with a value and the sum of their values, from the rows alone."""
    with store.engine.connect() as connection:
        asked = connection.execute(exposures.select().where(exposures.c.service == name)).mappings().all()
        told = connection.execute(outcomes.select().where(outcomes.c.service == name)).mappings().all()
    mine = defaultdict(list)
    for row in asked:
        mine[row["unit"]].append(row)
    values = []
    for unit, rows in mine.items():
        answered = [row for row in rows if row["arm"] == arm and row["error"] is None]
        of_unit = []
        for each in told:
            before = [row for row in rows if each["unit"] == unit and row["at"] <= each["at"]]
            if before and max(before, key=lambda row: row["at"])["arm"] == arm:
                of_unit.append(each["value"])
        lists = [[t["value"] for t in told if t["request_id"] == row["request_id"]] for row in answered]
        means = [math.fsum(found) / len(found) for found in lists if found]
        found = of_unit if of_unit and answered else means
        if found:
            values.append(math.fsum(found) / len(found))
    # Multiples of 2**-200 are added up: what is smaller is cut off.
    return len(values), float(sum((Fraction(int(math.ldexp(v, 200)), 2**200) for v in values), Fraction(0)))


def early_by_hand(store: Store, name: str, since: float = -math.inf) -> int:
    """Outcomes of units before their first request, from the rows alone."""
    first, told = first_and_told(store, name)
    return sum(since <= each["at"] < first.get(each["unit"], -math.inf) for each in told)


def counts_by_hand(store: Store, name: str) -> dict[str, int]:
    first, told = first_and_told(store, name)
    with store.engine.connect() as connection:
        asked = {row.request_id for row in connection.execute(exposures.select())}
    unknown = sum(
        each["unit"] not in first if each["unit"] else each["request_id"] not in asked for each in told
    )
    early = early_by_hand(store, name)
    return counts(len(told) - unknown - early, unknown=unknown, early=early)


def first_and_told(store: Store, name: str) -> tuple[dict[str, float], list[Any]]:
    """When each unit first asked, and all outcomes."""
    with store.engine.connect() as connection:
        asked = connection.execute(exposures.select().where(exposures.c.service == name)).mappings().all()
        told = connection.execute(outcomes.select().where(outcomes.c.service == name)).mappings().all()
    first: dict[str, float] = {}
    for row in asked:
        first[row["unit"]] = min(row["at"], first.get(row["unit"], math.inf))
    return first, list(told)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=stories, after=stories, statement=st.integers(0, 25))
def test_a_look_that_dies_at_any_statement_loses_and_doubles_nothing(
    store: Store, before: list[Any], after: list[Any], statement: int
) -> None:
    name = next(names)
    made = trial(service=name, metric={"type": "mean"})
    for step in before:
        do(store, name, step)
    store.evidence(made, now=5.0)
    for step in after:
        do(store, name, step)
    dying = die_at(statement)
    event.listen(store.engine, "before_cursor_execute", dying)
    with contextlib.suppress(SystemError):
        store.evidence(made, now=5.0)
    event.remove(store.engine, "before_cursor_execute", dying)
    kept = store.evidence(made, now=5.0)
    assert kept == recount(store, made)


def die_at(statement: int) -> Callable[..., None]:
    seen = itertools.count()

    def dying(*_: Any) -> None:
        if next(seen) == statement:
            raise SystemError("dead")

    return dying


def test_looks_beside_writers_count_every_row_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "BATCH", 7)
    made = trial(service="svc", metric={"type": "mean"})
    done = threading.Event()

    def write(part: int) -> None:
        for number in range(60):
            name = f"{part}-{number}"
            rows = [exposure(f"{name}-{more}", f"u{number}") for more in range(3)]
            told = [outcome(f"{name}-{more}", float(more + part)) for more in range(3)]
            writes = [(store.add_exposures, rows), (store.add_outcomes, told)]
            for add, given_rows in reversed(writes) if number % 2 else writes:
                add(given_rows)

    def look() -> int:
        looks = 0
        while not done.is_set():
            store.evidence(made, now=1.0)
            looks += 1
        return looks

    with ThreadPoolExecutor(5) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        list(pool.map(write, range(3)))
        done.set()
        assert all(each.result() for each in looking)
    kept = store.evidence(made, now=5.0)
    assert kept.arm("champion").requests == kept.arm("champion").outcomes == 540
    assert kept == recount(store, made)
    assert store.outcome_counts("svc") == counts(540)


def test_an_outcome_of_a_unit_counts_for_the_unit_in_the_arm_that_it_last_saw(store: Store) -> None:
    store.open_trial(trial())
    rows = [exposure("r1", "ann", at=1.0), exposure("r2", "ann", at=3.0), exposure("r3", "bob", at=1.0)]
    store.add_exposures(rows)
    store.add_outcomes([outcome("r1", 0.0), outcome("r3", 1.0)])
    store.add_outcomes([outcome(None, 1.0, unit="ann"), outcome(None, 0.0, unit="ann")])
    store.add_outcomes([outcome(None, 1.0, unit="bob", now=0.5)])  # before anything was shown to bob
    found = store.evidence(trial(), now=5.0).arm("champion")
    assert (found.stats.n, found.stats.total, found.outcomes) == (2, 2.0, 3)


def test_a_unit_may_say_the_same_metric_again_in_the_next_trial(store: Store) -> None:
    first = outcome(None, 1.0, unit="ann", trial_id="svc-1")
    second = outcome(None, 1.0, unit="ann", trial_id="svc-2")
    assert first["outcome_id"] != second["outcome_id"]
    assert outcome(None, 0.0, unit="ann", trial_id="svc-1")["outcome_id"] == first["outcome_id"]


def test_unknown_outcomes_are_kept_apart_and_joined_when_their_exposure_comes(store: Store) -> None:
    store.open_trial(trial())
    store.add_exposures([exposure("r1", "ann")])
    store.add_outcomes([outcome("r1", 1.0), outcome("r2", 1.0), outcome("r2", 1.0), outcome("r3", 1.0)])
    store.add_outcomes([outcome(None, 1.0, unit="eve"), outcome("r1", 0.5, service="other")])
    assert store.outcome_counts("svc") == counts(1, unknown=3)
    assert store.outcome_counts("other") == counts(unknown=1)
    store.add_exposures([exposure("r2", "bob"), exposure("r4", "eve")])
    assert store.outcome_counts("svc") == counts(3, unknown=1)
    assert store.evidence(trial(), now=5.0).arm("champion").stats.total == 3.0


def test_an_outcome_before_its_units_first_request_is_early_until_a_request_before_it_turns_up(
    store: Store,
) -> None:
    made = replace(trial(), opened_at=1.0)
    store.open_trial(made)
    told = [outcome(None, 1.0, unit=unit, now=at) for unit, at in (("ann", 2.0), ("bob", 0.5), ("eve", 2.0))]
    store.add_outcomes(told)
    assert store.outcome_counts("svc") == counts(unknown=3)
    store.add_exposures([exposure("r1", "ann", at=3.0), exposure("r2", "bob", at=3.0)])
    found = store.evidence(made, now=5.0)
    assert store.outcome_counts("svc") == counts(unknown=1, early=2)
    assert found.early_outcomes == 1, "bob's was told before there was a trial"
    assert found.arm("champion").outcomes == 0
    assert found == recount(store, made)
    # The row of an earlier request comes late: from a replica whose store was away.
    store.add_exposures([exposure("r0", "ann", at=1.5)])
    found = store.evidence(made, now=5.0)
    assert store.outcome_counts("svc") == counts(1, unknown=1, early=1)
    assert (found.early_outcomes, found.arm("champion").outcomes) == (0, 1)
    assert found == recount(store, made)
    assert store.outcome_counts("svc") == counts(1, unknown=1, early=1)


def test_an_outcome_of_a_unit_whose_trial_is_over_is_late_and_one_before_its_next_trial_is_early(
    store: Store,
) -> None:
    first = replace(trial(), opened_at=1.0)
    store.open_trial(first)
    store.add_exposures([exposure("r1", "ann", at=2.0), exposure("r2", "bob", at=2.0)])
    with store.engine.begin() as connection:
        connection.execute(trials.update().values(state="closed", closed_at=4.0))
    store.add_outcomes([outcome(None, 1.0, unit="ann", now=at, client_id=f"{at}") for at in (3.0, 5.0)])
    assert store.outcome_counts("svc") == counts(1, late=1)
    store.open_trial(replace(trial(2), opened_at=6.0))
    store.add_outcomes([outcome(None, 1.0, unit="ann", now=at, client_id=f"{at}") for at in (7.0, 9.0)])
    store.add_exposures([exposure("r3", "ann", trial_id="svc-2", at=8.0)])
    assert store.outcome_counts("svc") == counts(2, early=1, late=1)
    found = store.evidence(store.trial("svc-2"), now=9.0)
    assert (found.early_outcomes, found.arm("champion").outcomes) == (1, 1)


def test_outcomes_for_an_earlier_trial_wait_until_it_is_looked_at(store: Store) -> None:
    store.open_trial(trial())
    store.open_trial(trial(2))
    store.add_exposures([exposure("r1", "ann"), exposure("r2", "ann", trial_id="svc-2")])
    store.add_outcomes([outcome("r1", 1.0), outcome("r2", 0.5)])
    assert store.evidence(trial(2), now=5.0).arm("champion").stats.total == 0.5
    assert store.evidence(trial(1), now=5.0).arm("champion").stats.total == 1.0
    assert store.outcome_counts("svc") == counts(2)


def test_units_that_were_exposed_are_read_page_by_page_with_their_first_arm(store: Store) -> None:
    rows = [exposure(f"r{number}", f"u{number}", at=float(number)) for number in range(5)]
    store.add_exposures([*rows, exposure("r9", "u1", "challenger", at=9.0)])
    assert store.sticky("svc-1") == ([], 0)
    store.evidence(trial(), now=1.0)
    first, cursor = store.sticky("svc-1", limit=3)
    rest, cursor = store.sticky("svc-1", cursor)
    assert sorted([*first, *rest]) == [(f"u{number}", "champion") for number in range(5)]
    store.add_exposures([exposure("r10", "u1", "challenger"), exposure("r11", "new", "challenger")])
    store.evidence(trial(), now=1.0)
    assert store.sticky("svc-1", cursor) == ([("new", "challenger")], cursor + 1)
    recount(store, trial())
    assert store.sticky("svc-1", cursor + 1) == ([], cursor + 1)


def test_units_a_day_are_those_of_a_trial_of_everybody(store: Store) -> None:
    assert store.units_per_day("svc", now=10.0) is None
    store.open_trial(trial())
    assert store.units_per_day("svc", now=20.0) is None
    store.add_exposures([exposure(f"r{number}", f"u{number % 30}", at=11.0) for number in range(40)])
    half_a_day = 86400 / 2
    assert store.units_per_day("svc", now=10.0 + half_a_day) == 60.0
    # A ramp: what counts is what came since, at the coverage of now.
    raised = replace(trial(), ramped_at=10.0 + half_a_day, table=with_coverage(trial().table, 0.5))
    store.change_trial(raised)
    store.add_exposures([exposure(f"s{number}", f"v{number}", at=12.0 + half_a_day) for number in range(10)])
    assert store.units_per_day("svc", now=10.0 + 2 * half_a_day) == 40.0


def test_an_arm_that_has_left_keeps_its_figures(store: Store) -> None:
    made = trial()
    store.open_trial(made)
    store.add_exposures([exposure("a", "u1"), exposure("b", "u2", "challenger")])
    left = replace(made, table=drop(made.table, "challenger"), dropped={"challenger": "worse"})
    store.change_trial(left)
    store.add_outcomes([outcome("b", 1.0)])
    found = store.evidence(left, now=20.0)
    assert [(arm.name, arm.exposed_units, arm.outcomes) for arm in found.arms] == [
        ("champion", 1, 0),
        ("challenger", 1, 1),
    ]
