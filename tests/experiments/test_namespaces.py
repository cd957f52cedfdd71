"""Parts of a namespace that overlap are told with whom, and what is free."""

from __future__ import annotations

import pytest

from seatrial.experiments.assignment import Namespace
from seatrial.experiments.namespaces import namespace_of, trouble

MINE = Namespace("home", 0.2, 0.6)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"chat": (0.5, 1.0)}, "overlaps home 0.5 to 1 of chat: give a part that is free: 0 to 0.5"),
        (
            {"search": (0.0, 0.3), "chat": (0.5, 0.75)},
            "overlaps home 0.5 to 0.75 of chat and home 0 to 0.3 of search: give a part that is free: "
            "0.3 to 0.5, 0.75 to 1",
        ),
        (
            {"chat": (0.0, 1.0)},
            "overlaps home 0 to 1 of chat: nothing is free: make another service's smaller",
        ),
    ],
)
def test_whoever_overlaps_is_named_with_what_is_free(others: dict[str, tuple[float, float]], said: str):
    found = trouble(MINE, {service: Namespace("home", *part) for service, part in others.items()})
    assert found == f"trial.namespace: home 0.2 to 0.6: {said}"


def test_a_trial_that_runs_may_be_waited_for():
    found = trouble(MINE, {"chat": Namespace("home", 0.5, 1.0)}, runs=True)
    assert found is not None
    assert "of chat, whose trial runs: wait for its end, or give a part that is free: 0 to 0.5" in found


def test_parts_that_touch_and_other_namespaces_do_not_overlap():
    others = {
        "a": Namespace("home", 0.0, 0.2),
        "b": Namespace("home", 0.6, 1.0),
        "c": Namespace("shop", 0, 1),
    }
    assert trouble(MINE, others) is None
    assert trouble(None, others) is None
    assert namespace_of({"namespace": None}) is namespace_of({}) is None
    assert namespace_of({"namespace": {"name": "home", "start": 0.2, "end": 0.6}}) == MINE
