"""No trial opens beside one that it is to exclude."""

from __future__ import annotations

from dataclasses import replace

from seatrial.experiments.assignment import Namespace
from seatrial.reconcile.world import ObservedService
from tests.store.rows import trial

PART = {"name": "home", "start": 0.0, "end": 0.5}


def beside(start: float, end: float) -> dict[str, ObservedService]:
    """Another service, whose trial runs in a part of the same namespace."""
    made = trial(service="search")
    made = replace(made, table=replace(made.table, namespace=Namespace("home", start, end)))
    return {"search": ObservedService(trial=made)}


def test_a_trial_waits_for_the_end_of_one_whose_part_overlaps_its_own(make_sim):
    sim = make_sim(namespace=PART)
    sim.others = beside(0.4, 1.0)
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    assert sim.trials == {}
    assert sim.state.message == (
        "challenger 2: no trial yet: trial.namespace: home 0 to 0.5: overlaps home 0.4 to 1 of search, "
        "whose trial runs: wait for its end, or give a part that is free: 0 to 0.4"
    )
    sim.others = {"search": ObservedService()}  # it is closed
    sim.run()
    assert sim.trials["support-chat-1"].table.namespace == Namespace(**PART)


def test_trials_in_other_parts_and_trials_without_one_run_side_by_side(make_sim):
    for section in ({"namespace": PART}, {}):
        sim = make_sim(**section)
        sim.others = beside(0.5, 1.0)
        sim.aliases |= {"champion": "1", "challenger": "2"}
        sim.run()
        assert list(sim.trials) == ["support-chat-1"]
