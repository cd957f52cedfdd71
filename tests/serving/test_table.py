"""Which version answers."""

from __future__ import annotations

import pytest

from seatrial_serving.errors import HttpError
from seatrial_serving.table import Table

TRAFFIC = {
    "aliases": {"champion": "6", "challenger": "7", "previous": "5"},
    "trial": {
        "id": "svc-3",
        "seed": "s",
        "coverage": 1.0,
        "arms": [
            {"name": "champion", "version": "6", "weight": 0.5},
            {"name": "challenger", "version": "7", "weight": 0.5},
        ],
    },
}
TABLE = Table.from_json("svc", "r1", TRAFFIC)
READY = {"6": None, "7": None}


def test_a_unit_keeps_its_arm_and_half_of_them_are_in_each() -> None:
    routes = [TABLE.route("svc", f"unit-{i}", f"r{i}", READY) for i in range(2000)]
    assert routes == [TABLE.route("svc", f"unit-{i}", "another", READY) for i in range(2000)]
    challengers = sum(route.arm == "challenger" for route in routes)
    assert 900 < challengers < 1100
    assert all(route.trial == "svc-3" and route.is_sticky and not route.is_fallback for route in routes)
    assert {(route.arm, route.version) for route in routes} == {("champion", "6"), ("challenger", "7")}


def test_without_a_unit_the_request_is_the_unit_and_not_sticky() -> None:
    route = TABLE.route("svc", None, "request-1", READY)
    assert (route.unit, route.is_sticky) == ("request-1", False)


def test_pinned_requests_are_outside_the_trial() -> None:
    for model, version in (("svc@champion", "6"), ("svc@challenger", "7"), ("svc@7", "7")):
        route = TABLE.route(model, "u", "r", READY)
        assert (route.version, route.trial, route.arm) == (version, "", "")


@pytest.mark.parametrize(
    "model", ["other", "svc@5", "svc@previous", "svc@nobody", "svc@", "", None, 7, "other@6"]
)
def test_what_is_not_served_is_not_found(model: object) -> None:
    with pytest.raises(HttpError) as refused:
        TABLE.route(model, "u", "r", READY)
    assert (refused.value.status, refused.value.param) == (404, "model")


def test_no_champion_is_unavailable() -> None:
    for table, ready in ((Table("svc"), READY), (TABLE, {})):
        with pytest.raises(HttpError) as refused:
            table.route("svc", "u", "r", ready)
        assert refused.value.status == 503


def test_an_arm_that_is_not_ready_falls_back_to_the_champion_and_says_so() -> None:
    routes = [TABLE.route("svc", f"unit-{i}", "r", {"6": None}) for i in range(50)]
    lost = [route for route in routes if route.arm == "challenger"]
    assert lost
    assert all((r.version, r.assigned, r.is_fallback) == ("6", "7", True) for r in lost)


def test_a_failing_version_is_replaced_only_within_a_trial() -> None:
    challenger = next(
        r for i in range(50) if (r := TABLE.route("svc", f"u{i}", "r", READY)).arm == "challenger"
    )
    replaced = TABLE.without(challenger, READY)
    assert replaced is not None
    assert (replaced.version, replaced.assigned, replaced.arm) == ("6", "7", "challenger")
    assert TABLE.without(TABLE.route("svc@7", "u", "r", READY), READY) is None
    assert TABLE.without(replaced, READY) is None


def test_a_table_needs_its_champion_and_arms_but_not_what_aliases_remember() -> None:
    assert TABLE.needed == {"6", "7"}
    assert Table.from_json("svc", "r", None).needed == frozenset()


def reweighted(weight: float) -> Table:
    arms = [
        {"name": "champion", "version": "6", "weight": 1 - weight},
        {"name": "challenger", "version": "7", "weight": weight},
    ]
    return Table.from_json(
        "svc", "r2", {**TRAFFIC, "trial": {**TRAFFIC["trial"], "arms": arms, "bucket_version": 1}}
    )


def test_units_that_were_exposed_stay_in_their_arm_when_weights_change() -> None:
    units = [f"unit-{i}" for i in range(400)]
    before = {unit: TABLE.route("svc", unit, "r", READY).arm for unit in units}
    table = reweighted(0.1)
    known = {unit: arm for unit, arm in before.items() if unit < "unit-2"}
    after = {unit: table.route("svc", unit, "r", READY, known).arm for unit in units}
    assert {unit: after[unit] for unit in known} == known
    assert 0.05 < sum(after[u] == "challenger" for u in units if u not in known) / (400 - len(known)) < 0.2


def test_the_units_of_an_arm_that_was_taken_out_leave_the_trial() -> None:
    route = reweighted(0.1).route("svc", "u", "r", READY, {"u": "challenger-b"})
    assert (route.version, route.trial, route.arm) == ("6", "", "")


def test_a_table_whose_weights_never_changed_needs_no_memory() -> None:
    other = {"champion": "challenger", "challenger": "champion"}
    known = {f"u{i}": other[TABLE.route("svc", f"u{i}", "r", READY).arm] for i in range(20)}
    assert all(TABLE.route("svc", unit, "r", READY, known).arm != arm for unit, arm in known.items())
