"""Looks in the loop: a planned one is taken once, wherever it crashes; who leaves and who wins at one."""

import pytest

from seatrial.controller.report import report

PLAN = {"decision": {"type": "group_sequential", "looks": 2, "units": 800}, "minimum_units": 10}
TWO = {"challenger": "2", "challenger-b": "3"}


def opened(make_sim, challengers, **trial):
    sim = make_sim(**PLAN | trial)
    sim.aliases |= {"champion": "1", **challengers}
    sim.run()
    return sim


def taken(sim):
    looks = sim.looks.get("support-chat-1", {})
    return [units for units, look in sorted(looks.items()) if look.judgement.look]


def test_a_planned_look_counts_although_another_was_kept_at_the_same_units(make_sim):
    sim = opened(make_sim, {"challenger": "2"}, minimum_duration_s=60)
    sim.rates = {"champion": (200, 90), "challenger": (200, 100)}
    sim.run()
    assert list(sim.looks["support-chat-1"]) == [400]
    assert taken(sim) == []  # too early
    sim.now += 61
    sim.run()
    assert taken(sim) == [400]
    # More outcomes of the same users: the look is over, and nothing decides until the next one.
    sim.rates = {"champion": (200, 20), "challenger": (200, 180)}
    sim.run()
    assert sim.trials["support-chat-1"].state == "open"


@pytest.mark.parametrize(("challengers", "rates"), [
    ({"challenger": "2"}, {"champion": (400, 160), "challenger": (400, 240)}),
    (TWO, {"champion": (400, 160), "challenger": (200, 160), "challenger-b": (200, 80)}),
    (TWO, {"champion": (400, 200), "challenger": (200, 100), "challenger-b": (200, 20)}),
    (TWO, {"champion": (200, 100), "challenger": (100, 50), "challenger-b": (100, 5)}),
])  # fmt: skip
def test_a_crash_at_a_planned_look_loses_nothing_that_it_decided(make_sim, challengers, rates):
    def play(crash_at):
        sim = opened(make_sim, challengers)
        sim.rates, sim.effects, sim.crash_at = dict(rates), 0, crash_at
        sim.run()
        trial = sim.trials["support-chat-1"]
        return trial.verdict, list(trial.dropped), sim.aliases, taken(sim), sim.effects

    *whole, effects = play(None)
    assert whole[0] or whole[1]
    for crash_at in range(1, effects + 1):
        assert play(crash_at)[:-1] == tuple(whole), f"killed after effect {crash_at}"


def test_what_has_left_a_trial_is_kept_and_planned_looks_go_by_the_arms_that_are_left(make_sim):
    sim = opened(make_sim, TWO)
    sim.rates = {"champion": (200, 100), "challenger": (100, 50), "challenger-b": (100, 5)}
    sim.run()
    assert list(sim.trials["support-chat-1"].dropped) == ["challenger-b"]
    sim.rates |= {"champion": (270, 135), "challenger": (130, 65)}  # 500 with those who left
    sim.run()
    look = sim.looks["support-chat-1"][500]
    assert look.exposures == {"champion": 270, "challenger": 130, "challenger-b": 100}
    assert list(look.judgement.arms) == ["challenger"]
    trial = sim.trials["support-chat-1"]
    shown = report(trial, None, sim.evidence(trial), sim.now + 60)
    assert [(arm["name"], arm["units"], arm["weight"] is None) for arm in shown["arms"]] == [
        ("champion", 270, False),
        ("challenger", 130, False),
        ("challenger-b", 100, True),
    ]
    assert "worse" in shown["arms"][2]["dropped"]
    assert shown["expected"]["units"] == 700  # 500, and three quarters of what the plan still asks for
    waits = "look 2 of 2 at 800 units: 533 so far, by the arms that are left"  # 400 of three quarters
    assert look.judgement.reason == waits
    sim.rates |= {"champion": (480, 200), "challenger": (220, 140)}
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "promote"
    assert taken(sim) == [400, 800]
    kept = sim.looks["support-chat-1"]
    assert (kept[400].planned_units, kept[800].planned_units) == (400, 933)


def test_a_challenger_that_cannot_be_loaded_is_never_promoted(sim):
    sim.aliases |= {"champion": "1", **TWO}
    sim.run()
    sim.listed.append("r3")
    sim.broken.add("3")
    sim.tick()
    sim.rates = {"champion": (800, 160), "challenger": (400, 80), "challenger-b": (400, 280)}
    sim.run()
    trial = sim.trials["support-chat-1"]
    assert (trial.state, list(trial.dropped)) == ("open", ["challenger-b"])
    assert sim.aliases == {"champion": "1", "challenger": "2"}


def test_a_trial_ends_when_its_last_challengers_leave_for_different_reasons(sim):
    sim.aliases |= {"champion": "1", **TWO}
    sim.run()
    sim.listed.append("r3")
    sim.broken.add("3")
    sim.tick()
    sim.rates = {"champion": (800, 400), "challenger": (400, 20), "challenger-b": (400, 200)}
    sim.run()
    trial = sim.trials["support-chat-1"]
    assert trial.verdict == "roll_back"
    reason = sim.decisions[trial.id].reason
    assert "cannot be loaded" in reason
    assert "challenger is worse" in reason
    assert sim.aliases == {"champion": "1"}


def test_looks_while_the_registry_is_away_are_taken_once_and_a_winner_s_again_after(make_sim):
    sim = opened(make_sim, {"challenger": "2"})
    sim.is_away = True
    for units in (200, 400):
        sim.rates = {"champion": (units, units // 2), "challenger": (units, units // 2 + 2)}
        sim.one_pass()
    assert (taken(sim), sim.decisions) == ([400, 800], {})  # the last one: its verdict waits
    sim.rates = {"champion": (500, 250), "challenger": (500, 20)}
    sim.one_pass()
    assert (taken(sim), sim.decisions) == ([400, 800], {})
    sim.is_away = False
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "inconclusive"

    sim = opened(make_sim, {"challenger": "2"})
    sim.is_away = True
    sim.rates = {"champion": (400, 160), "challenger": (400, 280)}
    sim.one_pass()
    assert (taken(sim), sim.decisions) == ([], {})
    sim.is_away = False
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "promote"
