"""A registry that takes no writes, or does not answer: challengers that are out have no users."""

import dataclasses

import pytest

from seatrial.experiments.trial import Stop
from seatrial.reconcile import actions as do
from seatrial.reconcile.plan import plan

WORSE = {"champion": (400, 240), "challenger": (400, 80)}
BETTER = {"champion": (400, 80), "challenger": (400, 240)}
SKEWED = {"champion": (400, 10), "challenger": (40, 30)}
TRIAL = "support-chat-1"


def in_a_trial(sim, **more):
    sim.aliases |= {"champion": "1", "challenger": "2", **more}
    sim.run()
    assert sim.split
    sim.writes = []
    return dict(sim.aliases)


def kinds(sim):
    return [type(action) for action in sim.writes]


def passes(sim, number=2):
    for _ in range(number):
        sim.one_pass()
        sim.tick()


def test_serve_is_told_once_and_before_any_alias_is_taken(sim):
    in_a_trial(sim)
    sim.rates = WORSE
    sim.run()
    assert kinds(sim)[:4] == [do.Decide, do.PutApps, do.MoveAlias, do.MarkStep]
    assert kinds(sim).count(do.PutApps) == 1
    assert sim.traffic["aliases"] == {"champion": "1"}


def test_a_promotion_takes_nothing_from_the_winner_before_it_is_champion(sim):
    in_a_trial(sim)
    sim.rates = BETTER
    sim.run()
    assert kinds(sim)[:2] == [do.Decide, do.MoveAlias]


@pytest.mark.parametrize(("rates", "verdict"), [(WORSE, "roll_back"), (SKEWED, "invalid")])
def test_a_registry_that_takes_no_writes_leaves_nobody_with_a_loser(sim, rates, verdict):
    aliases = in_a_trial(sim)
    sim.rates, sim.is_read_only = rates, True
    passes(sim)
    assert sim.decisions[TRIAL].verdict == verdict
    assert (sim.split, sim.aliases) == (set(), aliases)
    assert sim.traffic["aliases"] == {"champion": "1"}
    told = sim.told
    passes(sim, 4)
    assert sim.told == told
    assert kinds(sim) == [do.Decide, do.PutApps]
    sim.is_read_only = False
    sim.run()
    assert sim.told == told
    assert (sim.aliases, sim.audits) == ({"champion": "1"}, [TRIAL])


def test_one_that_leaves_and_one_more_have_no_users_while_no_alias_can_be_taken(sim):
    aliases = in_a_trial(sim, **{"challenger-b": "3", "challenger-c": "4"})
    sim.is_read_only = True
    rates = {**dict.fromkeys(sim.trials[TRIAL].arms, (400, 200)), "champion": (1200, 600)}
    for arm, left in (("challenger-b", {"challenger", "challenger-c"}), ("challenger-c", {"challenger"})):
        rates[arm] = (400, 40)
        sim.rates = rates
        passes(sim)
        assert {name for _, name in sim.split} == {"champion", *left}
    assert sim.aliases == aliases
    sim.is_read_only = False
    sim.run()
    assert sim.aliases == {"champion": "1", "challenger": "2"}


def test_a_person_who_makes_the_challenger_champion_is_served_it_although_nothing_can_be_written(sim):
    in_a_trial(sim)
    sim.is_read_only = True
    sim.aliases["champion"] = "2"
    passes(sim)
    assert sim.decisions[TRIAL].verdict == "superseded"
    assert (sim.split, sim.traffic["aliases"]) == (set(), {"champion": "2"})


@pytest.mark.parametrize(("rates", "verdict"), [(WORSE, "roll_back"), (SKEWED, "invalid")])
def test_a_loser_has_no_users_while_the_registry_is_away_and_its_alias_is_taken_after(sim, rates, verdict):
    aliases = in_a_trial(sim)
    before = sim.told
    sim.rates, sim.is_away = rates, True
    passes(sim)
    assert sim.split == set()
    assert {**sim.traffic, "trial": None} == {**before["traffic"], "trial": None}
    assert {**sim.told, "traffic": 0, "revision": 0} == {**before, "traffic": 0, "revision": 0}
    passes(sim, 4)
    assert kinds(sim) == [do.Decide, do.PutApps]
    assert sim.aliases == aliases
    sim.is_away = False
    sim.run()
    assert sim.decisions[TRIAL].verdict == verdict
    assert (sim.aliases, sim.audits) == ({"champion": "1"}, [TRIAL])
    assert plan(*sim.observe(), sim.now) == []


@pytest.mark.parametrize("hours", [1, 337])
def test_nobody_is_promoted_and_no_deadline_ends_a_trial_while_the_registry_is_away(sim, hours):
    in_a_trial(sim)
    sim.rates = BETTER if hours == 1 else {}
    sim.now += hours * 3600
    sim.is_away = True
    passes(sim, 4)
    assert set(kinds(sim)) <= {do.AddLook}
    assert len(sim.split) == 2
    sim.is_away = False
    sim.run()
    assert sim.trials[TRIAL].verdict == ("promote" if hours == 1 else "inconclusive")


def test_no_coverage_and_no_weights_change_while_the_registry_is_away(make_sim):
    for policy in ({"ramp": {"steps": [0.1, 0.5], "hold_s": 60}}, {"decision": {"type": "thompson"}}):
        sim = make_sim(minimum_units=100, **policy)
        in_a_trial(sim)
        before = sim.told
        sim.rates = {"champion": (60, 30), "challenger": (60, 33)}
        sim.now += 3600
        sim.is_away = True
        passes(sim, 4)
        assert sim.told == before
        assert set(kinds(sim)) <= {do.AddLook}
        sim.is_away = False
        sim.run()
        assert sim.traffic["trial"] != before["traffic"]["trial"]


def test_a_loser_leaves_while_the_registry_is_away_and_a_winner_beside_it_waits(sim):
    in_a_trial(sim, **{"challenger-b": "3"})
    sim.rates = {"champion": (800, 160), "challenger": (400, 280), "challenger-b": (400, 80)}
    sim.failed = {"challenger-b": 400}
    sim.is_away = True
    passes(sim)
    assert {arm for _, arm in sim.split} == {"champion", "challenger"}
    assert "max_error_share" in sim.trials[TRIAL].dropped["challenger-b"]
    sim.is_away = False
    sim.run()
    assert sim.trials[TRIAL].verdict == "promote"
    assert sim.aliases == {"champion": "2", "previous": "1"}


def test_a_person_can_stop_a_trial_while_the_registry_is_away(sim):
    in_a_trial(sim)
    sim.rates, sim.is_away = WORSE, True  # the stop comes first
    sim.trials[TRIAL] = dataclasses.replace(sim.trials[TRIAL], stop=Stop("anna", "enough"))
    passes(sim)
    assert (sim.decisions[TRIAL].verdict, sim.decisions[TRIAL].actor) == ("inconclusive", "anna")
    assert sim.split == set()


def test_one_that_cannot_be_loaded_while_the_registry_is_away_is_waited_for(sim):
    in_a_trial(sim)
    sim.listed.append("r3")
    sim.broken.add("2")
    sim.is_away = True
    passes(sim, 4)
    assert set(kinds(sim)) <= {do.AddLook}
    sim.rates = WORSE
    passes(sim)
    assert sim.split == set()


@pytest.mark.parametrize("alias", ["champion", "challenger"])
def test_what_a_person_wished_while_the_registry_was_away_stands(sim, alias):
    in_a_trial(sim)
    sim.rates, sim.is_away = WORSE, True
    passes(sim)
    sim.aliases[alias] = "3"
    passes(sim)
    assert sim.traffic["aliases"]["champion"] == "1"
    sim.is_away = False
    sim.run()
    assert sim.trials[TRIAL].verdict == "roll_back"
    assert sim.aliases[alias] == "3"
    assert sim.traffic["aliases"]["champion"] == sim.aliases["champion"]


def test_what_was_deployed_meanwhile_waits_and_what_was_deleted_is_left_alone(sim):
    in_a_trial(sim)
    before = sim.args
    sim.config["engine"]["max_model_len"] = 256
    sim.config_at = 2.0
    sim.rates, sim.is_away = WORSE, True
    passes(sim, 4)
    assert (sim.split, sim.args) == (set(), before)
    sim.deleted_at = sim.now
    assert plan(*sim.observe(), sim.now) == []
    sim.is_away = False
    sim.run()
    assert not sim.is_there


def test_a_whole_model_that_lost_while_the_registry_is_away_keeps_its_application_until_it_is_back(make_sim):
    sim = make_sim(kinds={"2": "full"})
    in_a_trial(sim)
    sim.rates, sim.is_away = WORSE, True
    passes(sim, 4)
    assert sim.split == set()
    assert "support-chat--v2" in sim.apps
    sim.is_away = False
    sim.run()
    assert set(sim.apps) == {"support-chat"}


def test_serve_that_was_started_anew_while_the_registry_is_away_is_told_nothing(sim):
    in_a_trial(sim)
    sim.rates, sim.is_away = WORSE, True
    sim.apps, sim.rows = {}, {}
    passes(sim)
    assert sim.decisions[TRIAL].verdict == "roll_back"
    assert sim.apps == {}
