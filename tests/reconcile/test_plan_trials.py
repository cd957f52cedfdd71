"""How the plan opens trials and ends them."""

import pytest

from seatrial.reconcile import actions as do


def test_a_challenger_opens_a_trial_that_is_split_only_when_it_is_ready_everywhere(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.aliases["challenger"] = "2"
    sim.one_pass()
    assert sim.trials == {}
    sim.run()
    trial = sim.trials["support-chat-1"]
    assert (trial.champion, trial.challenger, trial.number) == ("1", "2", 1)
    assert sim.traffic["trial"] == trial.table.to_json()
    assert sim.traffic["aliases"] == {"champion": "1", "challenger": "2"}
    assert sim.state.phase == "trial"


@pytest.mark.parametrize(
    ("rates", "failed", "hours", "verdict", "after"),
    [
        ({"champion": (400, 80), "challenger": (400, 240)}, 0, 1, "promote",
         {"champion": "2", "previous": "1"}),
        ({"champion": (400, 240), "challenger": (400, 80)}, 0, 1, "roll_back", {"champion": "1"}),
        ({"champion": (20, 10), "challenger": (20, 10)}, 30, 1, "roll_back", {"champion": "1"}),
        ({"champion": (40, 10), "challenger": (40, 30)}, 0, 337, "inconclusive", {"champion": "1"}),
        ({"champion": (400, 10), "challenger": (40, 30)}, 0, 1, "invalid", {"champion": "1"}),
    ],
)  # fmt: skip
def test_a_verdict_moves_aliases_tags_versions_and_is_audited(sim, rates, failed, hours, verdict, after):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    sim.rates, sim.failed = rates, {"challenger": failed}
    sim.now += hours * 3600
    sim.run()
    sim.tick()
    trial = sim.trials["support-chat-1"]
    assert (trial.state, trial.verdict) == ("closed", verdict)
    assert sim.aliases == after
    assert sim.traffic["trial"] is None
    assert sim.traffic["aliases"]["champion"] == after["champion"]
    assert sim.audits == ["support-chat-1"]
    assert sim.tags["1", "seatrial.trial.support-chat-1"] == f"champion: {verdict}"
    assert sim.tags["2", "seatrial.trial.support-chat-1"] == f"challenger: {verdict}"


def test_the_decision_is_written_before_any_alias_moves(sim):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    sim.rates = {"champion": (400, 80), "challenger": (400, 240)}
    sim.run()
    kinds = [type(action) for action in sim.writes]
    assert kinds.index(do.Decide) < kinds.index(do.MoveAlias) < kinds.index(do.WriteAudit)
    assert kinds.index(do.WriteAudit) < kinds.index(do.CloseTrial)
    assert sim.decisions["support-chat-1"].evidence.units == 800


@pytest.mark.parametrize(
    ("moves", "after", "trials"),
    [
        ({"challenger": None}, {"champion": "1"}, 1),
        ({"challenger": "3"}, {"champion": "1", "challenger": "3"}, 2),
        ({"champion": "3"}, {"champion": "3", "challenger": "2", "previous": "1"}, 2),
        ({"champion": "2"}, {"champion": "2", "previous": "1"}, 1),
        ({"champion": "3", "challenger": None}, {"champion": "3", "previous": "1"}, 1),
    ],
)
def test_a_person_ends_the_trial_and_their_wish_stands(sim, moves, after, trials):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    sim.rates = {"champion": (400, 80), "challenger": (400, 240)}  # it would have been promoted
    for alias, version in moves.items():
        sim.aliases.pop(alias)
        if version:
            sim.aliases[alias] = version
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "superseded"
    assert sim.aliases == after
    assert len(sim.trials) == trials
    assert sim.decisions["support-chat-1"].actor.startswith("a person")


def test_a_challenger_that_fails_in_a_new_replica_is_rolled_back(sim):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    sim.listed.append("r3")
    sim.broken.add("2")
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "roll_back"
    assert "cannot be loaded" in sim.decisions["support-chat-1"].reason
    assert sim.traffic["aliases"] == {"champion": "1"}


def test_a_challenger_that_a_new_replica_goes_on_trying_is_not_rolled_back_however_much_it_says(sim):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    said = f"error: models:/{'n' * 63}/2: its artifact did not arrive ({'x ' * 200}), trying again"
    sim._load = lambda version: said if version == "2" else "ready"
    sim.listed.append("r3")
    for _ in range(5):
        sim.one_pass()
        sim.tick()
    assert sim.trials["support-chat-1"].state == "open"
    assert sim.decisions == {}


@pytest.mark.parametrize(("alias", "after"), [("challenger", {"champion": "2", "challenger": "3"}),
                                              ("champion", {"champion": "3"})])  # fmt: skip
def test_a_move_between_the_decision_and_its_aliases_is_left_standing(sim, alias, after):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    sim.rates = {"champion": (400, 80), "challenger": (400, 240)}
    while not sim.decisions:
        sim.one_pass()
    sim.aliases[alias] = "3"
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "promote"
    assert sim.aliases == {**after, "previous": "1"}


def test_a_trial_whose_champion_alias_is_taken_away_ends_and_the_champion_goes_on(sim):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    del sim.aliases["champion"]
    sim.run()
    assert sim.trials["support-chat-1"].verdict == "superseded"
    assert sim.traffic["trial"] is None
    assert sim.traffic["aliases"]["champion"] == "1"
