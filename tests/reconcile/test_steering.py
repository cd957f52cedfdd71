"""What changes while a trial runs: coverage, arms, a person's stop, and the shadow beside it."""

import pytest

from seatrial.controller.report import report
from seatrial.experiments.assignment import assign
from seatrial.experiments.trial import MOST_ALIAS_CHARS
from seatrial.reconcile import actions as do

RAMP = {"steps": [0.01, 0.05, 0.25, 0.5], "hold_s": 3600}
UNITS = [f"unit-{number}" for number in range(4000)]


def seen(sim, units=100):
    sim.rates = dict.fromkeys(sim.trials["support-chat-1"].arms, (units, units // 2))


def table(sim):
    return sim.trials["support-chat-1"].table


def test_a_ramp_raises_the_coverage_step_by_step_and_moves_nobody(make_sim):
    sim = make_sim(ramp=RAMP, minimum_units=100_000)
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    shares, arms = [], {}
    for _ in range(4):
        before = table(sim)
        shares.append(round(before.coverage * before.arm("challenger").weight, 6))
        for unit in UNITS:
            arm = assign(unit, before)
            if arm is not None:
                assert arms.setdefault(unit, arm.name) == arm.name
        seen(sim)
        sim.now += 3599
        sim.run()
        assert table(sim).coverage == before.coverage  # the step is held to its end
        sim.now += 1
        sim.run()
    assert shares == RAMP["steps"]
    assert table(sim).coverage == 1.0
    assert sim.traffic["trial"] == table(sim).to_json()


def test_a_ramp_waits_for_evidence_and_for_the_replicas(make_sim):
    sim = make_sim(ramp=RAMP, minimum_units=100_000)
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    first = table(sim).coverage
    seen(sim, units=19)
    sim.now += 10 * 3600
    sim.run()
    assert table(sim).coverage == first  # nobody has seen enough of the challenger
    seen(sim)
    sim.rows.clear()  # the replicas say nothing
    for _ in range(5):
        sim.one_pass()
    assert table(sim).coverage == first
    sim.run()
    assert table(sim).coverage > first


def test_a_trial_of_two_challengers_splits_their_share(sim):
    sim.aliases |= {"champion": "1", "challenger": "2", "challenger-b": "3"}
    sim.run()
    assert {arm.name: arm.weight for arm in table(sim).arms} == {
        "champion": 0.5,
        "challenger": 0.25,
        "challenger-b": 0.25,
    }
    assert sim.trials["support-chat-1"].challengers == {"challenger": "2", "challenger-b": "3"}


@pytest.mark.parametrize(("aliases", "kept"), [
    ({"challenger": "2", "challenger-b": "2"}, {"challenger": "2"}),
    ({"challenger": "1", "challenger-b": "3"}, {"challenger-b": "3"}),
    ({"challenger": "4", "challenger-b": "3"}, {"challenger-b": "3"}),
])  # fmt: skip
def test_only_versions_that_can_be_compared_take_part(make_sim, aliases, kept):
    sim = make_sim(kinds={"4": "none"})
    sim.aliases |= {"champion": "1", **aliases}
    sim.run()
    assert sim.trials["support-chat-1"].challengers == kept


def test_an_alias_that_is_too_long_for_the_evidence_to_name_opens_no_trial_and_is_said(sim):
    long = f"challenger-{'b' * (MOST_ALIAS_CHARS - 10)}"
    sim.aliases |= {"champion": "1", long: "3"}
    sim.run()
    assert sim.trials == {}
    assert f"{long} is longer than 32 characters: no trial" in sim.state.message
    sim.aliases["challenger"] = "2"
    sim.aliases[long[:-1]] = "4"
    sim.run()
    assert sim.trials["support-chat-1"].challengers == {"challenger": "2", long[:-1]: "4"}


def test_a_challenger_that_cannot_be_loaded_leaves_and_the_others_go_on(sim):
    sim.aliases |= {"champion": "1", "challenger": "2", "challenger-b": "3"}
    sim.run()
    before = table(sim)
    sim.listed.append("r3")
    sim.broken.add("3")
    sim.run()
    trial = sim.trials["support-chat-1"]
    assert trial.state == "open"
    assert [arm.name for arm in trial.table.arms] == ["champion", "challenger"]
    assert "cannot be loaded" in trial.dropped["challenger-b"]
    assert sim.aliases == {"champion": "1", "challenger": "2"}
    assert "dropped" in sim.tags["3", "seatrial.trial.support-chat-1"]
    for unit in UNITS:
        old, new = assign(unit, before), assign(unit, trial.table)
        assert (new.name if new else None) == (None if old.name == "challenger-b" else old.name)
    # Its alias belongs to people again.
    sim.aliases["challenger-b"] = "5"
    sim.run()
    assert sim.trials["support-chat-1"].state == "open"
    assert "challenger-b waits" in sim.state.message


def test_of_several_challengers_the_best_is_promoted_and_all_candidacies_end(sim):
    sim.aliases |= {"champion": "1", "challenger": "2", "challenger-b": "3"}
    sim.run()
    sim.rates = {"champion": (800, 160), "challenger": (400, 90), "challenger-b": (400, 280)}
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "promote"
    assert sim.aliases == {"champion": "3", "previous": "1"}
    assert sim.tags["3", "seatrial.trial.support-chat-1"] == "challenger-b: promote"
    assert sim.tags["2", "seatrial.trial.support-chat-1"] == "challenger: promote of challenger-b"


def test_a_losing_challenger_is_dropped_while_the_other_goes_on(sim):
    sim.aliases |= {"champion": "1", "challenger": "2", "challenger-b": "3"}
    sim.run()
    sim.rates = {"champion": (800, 400), "challenger": (400, 200), "challenger-b": (400, 40)}
    sim.run()
    trial = sim.trials["support-chat-1"]
    assert (trial.state, set(trial.dropped)) == ("open", {"challenger-b"})
    assert sim.aliases == {"champion": "1", "challenger": "2"}


def test_a_person_stops_a_trial_and_the_champion_stays(sim):
    from dataclasses import replace

    from seatrial.experiments.trial import Stop

    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    sim.rates = {"champion": (400, 80), "challenger": (400, 240)}  # it would have been promoted
    trial = sim.trials["support-chat-1"]
    sim.trials[trial.id] = replace(trial, stop=Stop("anna", "the prompt was wrong"))
    sim.run()
    decision = sim.decisions["support-chat-1"]
    assert (decision.verdict, decision.actor) == ("inconclusive", "anna")
    assert decision.reason == "stopped: the prompt was wrong"
    assert sim.aliases == {"champion": "1"}


def test_a_shadow_sees_traffic_once_it_is_ready_and_is_in_no_trial(sim):
    sim.aliases |= {"champion": "1", "shadow": "3"}
    sim.delayed.add("3")
    sim.run()
    assert sim.traffic["shadow"] is None
    assert "shadow 3 is being loaded" in sim.state.message
    sim.delayed.clear()
    sim.run()
    assert sim.traffic["shadow"] == {"version": "3", "share": 1.0}
    assert sim.trials == {}
    sim.aliases["champion"] = "3"
    sim.run()
    assert sim.traffic["shadow"] is None  # the champion needs no copy


def test_replicas_are_told_with_what_a_refusal_begins(make_sim):
    for phrases in ([], ["I cannot"]):
        sim = make_sim(refusal_phrases=phrases)
        sim.aliases["champion"] = "1"
        sim.run()
        assert sim.traffic.get("refusal_phrases", []) == phrases


def test_a_shadow_that_cannot_be_loaded_is_said_and_changes_nothing(sim):
    sim.aliases |= {"champion": "1", "shadow": "3"}
    sim.broken.add("3")
    sim.run()
    assert sim.traffic["shadow"] is None
    assert "shadow 3 cannot be loaded" in sim.state.message
    assert sim.state.phase == "serving"
    assert [type(a) for a in sim.writes if isinstance(a, do.MoveAlias)] == []


def test_a_trial_for_reward_settles_on_weights_that_are_told_as_they_are(make_sim):
    sim = make_sim(decision={"type": "thompson", "floor": 0.1}, ramp={"steps": [0.25, 0.5], "hold_s": 60})
    sim.aliases |= {"champion": "1", "challenger": "2", "challenger-b": "3"}
    sim.run()
    sim.rates = {"champion": (200, 40), "challenger": (100, 20), "challenger-b": (100, 70)}
    sim.now += 61
    sim.run()  # comes to rest: the same evidence moves the weights once
    found = table(sim)
    assert (found.coverage, found.bucket_version) == (1.0, 1)
    assert found.arm("challenger-b").weight > 0.7
    told = report(sim.trials["support-chat-1"], None, None, sim.now)["ramp"]
    assert told["share"] == pytest.approx(1 - found.arm("champion").weight)
    sim.failed["challenger"] = 400
    sim.run()
    assert [arm.name for arm in table(sim).arms] == ["champion", "challenger-b"]
    told = report(sim.trials["support-chat-1"], None, None, sim.now)["ramp"]
    assert told["share"] == pytest.approx(found.arm("challenger-b").weight)
