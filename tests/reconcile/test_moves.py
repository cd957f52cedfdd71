"""A champion that a person moves outside of any trial is recorded once: from whom, to whom."""

from __future__ import annotations

import pytest


def serving(make_sim, **trial):
    sim = make_sim(**trial)
    sim.aliases = {"champion": "1"}
    sim.run()
    return sim


def test_the_first_champion_follows_nobody(make_sim):
    assert serving(make_sim).moves == []


def test_every_move_by_hand_is_recorded_and_back_too(make_sim):
    sim = serving(make_sim)
    for version in ("2", "1", "2", "3"):
        sim.aliases["champion"] = version
        sim.run()
    assert sim.moves == [("1", "2"), ("2", "1"), ("1", "2"), ("2", "3")]
    assert sim.state.served == "3"
    assert sim.aliases == {"champion": "3", "previous": "2"}


def test_a_wish_that_cannot_be_served_is_a_move_as_well(make_sim):
    sim = serving(make_sim)
    sim.broken.add("2")
    sim.aliases["champion"] = "2"
    sim.run()
    assert (sim.moves, sim.state.served) == ([("1", "2")], "1")
    sim.aliases["champion"] = "1"
    sim.run()
    assert sim.moves == [("1", "2"), ("2", "1")]


def test_no_champion_is_no_move_and_the_next_one_is(make_sim):
    sim = serving(make_sim)
    del sim.aliases["champion"]
    sim.run()
    assert sim.moves == []
    sim.aliases["champion"] = "2"
    sim.run()
    assert sim.moves == [("1", "2")]


def test_what_a_trial_did_is_in_its_own_record(make_sim):
    sim = serving(make_sim)
    sim.aliases["challenger"] = "2"
    sim.run()
    sim.rates = {"champion": (500, 100), "challenger": (500, 250)}
    sim.run()
    assert (sim.aliases["champion"], sim.audits, sim.moves) == ("2", ["support-chat-1"], [])
    sim.aliases["challenger"] = "3"
    sim.run()
    sim.aliases = {"champion": "1"}  # in mid-trial: superseded
    sim.run()
    assert sim.audits == ["support-chat-1", "support-chat-2"]
    assert sim.moves == []
    sim.aliases["champion"] = "2"
    sim.run()
    assert sim.moves == [("1", "2")]


@pytest.mark.parametrize("effect", range(1, 9))
def test_a_death_after_any_effect_records_it_once(make_sim, effect: int):
    sim = serving(make_sim)
    sim.aliases["champion"] = "2"
    sim.crash_at = sim.effects + effect
    sim.run()
    sim.aliases["champion"] = "3"
    sim.run()
    assert sim.moves == [("1", "2"), ("2", "3")]
    assert sim.state.served == "3"


@pytest.mark.parametrize("effect", range(1, 11))
@pytest.mark.parametrize("back", ["1", None])
def test_a_death_before_the_store_has_its_hash_leaves_no_record_that_looks_slipped_in(
    make_sim, effect: int, back: str | None
):
    """The record's hash is noted although the person has taken the move back meanwhile."""
    sim = serving(make_sim)
    sim.aliases["champion"] = "2"
    sim.crash_at = sim.effects + effect
    while sim.effects < sim.crash_at:
        sim.one_pass()
        sim.tick()
        if sim.now > 1_000_100:
            break
        sim.now += 1
    del sim.aliases["champion"]
    if back is not None:
        sim.aliases["champion"] = back
    sim.run()
    assert sim.anchored == list(sim.records)
    sim.aliases["champion"] = "3"
    sim.run()
    assert sim.anchored == list(sim.records)
    assert sim.moves[-1][1] == "3"
