"""Killed after any side effect and started again: the same end, and nothing twice."""

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from seatrial.experiments.trial import Stop
from seatrial.reconcile.plan import plan
from seatrial.reconcile.world import ServiceState

VERSIONS = st.sampled_from(["1", "2", "3", "4"])
ALIASES = st.sampled_from(["champion", "challenger", "challenger-b", "shadow", "previous"])


def better(sim):
    sim.rates = {"champion": (400, 80), "challenger": (400, 240)}


def worse(sim):
    sim.rates = {"champion": (400, 240), "challenger": (400, 80)}


def skewed(sim):
    sim.rates = {"champion": (400, 80), "challenger": (100, 60)}


def supersede(sim):
    sim.aliases["champion"] = "3"


def make_champion(sim):
    sim.aliases["champion"] = "2"


def withdraw(sim):
    sim.aliases.pop("challenger", None)


def break_it(sim):
    sim.broken.add("2")
    sim.listed.append("r3")


def stop(sim):
    for trial in sim.trials.values():
        if trial.state == "open":
            sim.trials[trial.id] = dataclasses.replace(trial, stop=Stop("anna", "enough"))


def delete(sim):
    sim.deleted_at = sim.now


def one_of_two_is_better(sim):
    sim.rates = {"champion": (800, 160), "challenger": (400, 90), "challenger-b": (400, 240)}


def one_of_two_is_worse(sim):
    sim.rates = {"champion": (800, 400), "challenger": (400, 200), "challenger-b": (400, 40)}


def one_of_two_breaks(sim):
    sim.broken.add("3")
    sim.listed.append("r3")


def passes(sim):
    for _ in range(8):
        sim.one_pass()
        sim.tick()


def worse_while(sim, trouble):
    """The challenger loses its users, and keeps its alias, while the registry has this trouble."""
    worse(sim)
    setattr(sim, trouble, True)
    passes(sim)
    assert sim.traffic["trial"] is None
    assert sim.aliases == {"champion": "1", "challenger": "2"}
    setattr(sim, trouble, False)


def worse_while_nothing_can_be_written(sim):
    """To the registry, which can be read."""
    worse_while(sim, "is_read_only")


def worse_while_the_registry_is_away(sim):
    worse_while(sim, "is_away")


def one_of_two_is_worse_while_the_registry_is_away(sim):
    one_of_two_is_worse(sim)
    sim.is_away = True
    passes(sim)
    assert {arm for _, arm in sim.split} == {"champion", "challenger"}
    assert sim.aliases["challenger-b"] == "3"
    sim.is_away = False


ONE = {"challenger": "2"}
TWO = {"challenger": "2", "challenger-b": "3", "shadow": "5"}
EVENTS = [
    *(
        (event, ONE)
        for event in (
            *(better, worse, skewed, supersede, make_champion, withdraw, break_it, stop, delete),
            *(worse_while_nothing_can_be_written, worse_while_the_registry_is_away),
        )
    ),
    *(
        (event, TWO)
        for event in (
            *(one_of_two_is_better, one_of_two_is_worse, one_of_two_breaks, supersede, delete),
            one_of_two_is_worse_while_the_registry_is_away,
        )
    ),
]


def play(make_sim, event, aliases, crash_at=None):
    """First alias to last record. Each event happens once, whatever crashes."""
    sim = make_sim(kinds={"2": "full"}, ramp={"steps": [0.25, 0.5], "hold_s": 60})
    sim.crash_at = crash_at
    sim.aliases["champion"] = "1"
    sim.run()
    sim.aliases |= aliases
    sim.run()
    sim.rates = dict.fromkeys(("champion", *aliases), (20, 10))
    sim.now += 60  # the ramp's next step
    sim.run()
    event(sim)
    sim.run()
    return sim


def end_of(sim):
    return {
        "aliases": sim.aliases,
        "tags": sim.tags,
        "apps": sim.apps,
        "trials": sim.trials,
        "decisions": {name: decision.to_json() for name, decision in sim.decisions.items()},
        "audits": sim.audits,
        "state": sim.state,
        "is_there": sim.is_there,
        "looks": {name: sorted(looks) for name, looks in sim.looks.items()},
    }


@pytest.mark.parametrize(("event", "aliases"), EVENTS, ids=[f"{e.__name__}-{len(a)}" for e, a in EVENTS])
def test_a_crash_after_any_side_effect_changes_nothing_in_the_end(make_sim, event, aliases):
    whole = play(make_sim, event, aliases)
    assert whole.effects > 10
    for crash_at in range(1, whole.effects + 1):
        end = end_of(play(make_sim, event, aliases, crash_at))
        assert end == end_of(whole), f"killed after effect {crash_at}"


class AnyWorld(RuleBasedStateMachine):
    """People, failures and crashes in any order."""

    make = None

    def __init__(self):
        super().__init__()
        self.sim = type(self).make(kinds={"3": "full", "4": "none"}, ramp={"steps": [0.1, 0.5], "hold_s": 60})

    @rule(alias=ALIASES, version=VERSIONS)
    def set_alias(self, alias, version):
        self.sim.aliases[alias] = version

    @rule(alias=ALIASES)
    def remove_alias(self, alias):
        self.sim.aliases.pop(alias, None)

    @rule(version=VERSIONS)
    def break_version(self, version):
        self.sim.broken ^= {version}

    @rule(event=st.sampled_from([better, worse, skewed, one_of_two_is_better, one_of_two_is_worse, stop]))
    def see(self, event):
        event(self.sim)

    @rule(hours=st.sampled_from([0.001, 0.1, 2, 400]))
    def wait(self, hours):
        self.sim.now += hours * 3600

    @rule(replicas=st.integers(1, 3))
    def scale(self, replicas):
        self.sim.listed = [f"r{number}" for number in range(replicas)]

    @rule()
    def restart_serve(self):
        self.sim.apps, self.sim.rows = {}, {}

    @rule()
    def delete(self):
        delete(self.sim)

    @rule()
    def deploy(self):
        sim = self.sim
        if not sim.is_there:
            sim.state = ServiceState()
        sim.is_there, sim.deleted_at, sim.config_at = True, None, sim.now

    @rule()
    def refuse_writes(self):
        self.sim.is_read_only = not self.sim.is_read_only

    @rule()
    def go_away(self):
        self.sim.is_away = not self.sim.is_away

    @rule(effects=st.integers(1, 6))
    def crash_soon(self, effects):
        self.sim.crash_at = self.sim.effects + effects

    @rule()
    def one_pass(self):
        self.sim.one_pass()

    @rule()
    def tick(self):
        self.sim.tick()

    @rule()
    def run_to_rest(self):
        sim = self.sim
        sim.is_read_only = sim.is_away = False
        sim.run()
        assert plan(*sim.observe(), sim.now) == []
        assert sim.is_there == (sim.deleted_at is None)
        if not sim.is_there:
            assert sim.apps == {}
            assert all(trial.state == "closed" for trial in sim.trials.values())
            return
        wished, champion = sim.aliases.get("champion"), sim.traffic.get("aliases", {}).get("champion")
        if wished is None:
            assert champion == sim.state.served  # the last one goes on
        elif wished != champion:
            assert wished in sim.broken | {"4"} | set(sim.state.refused)
        assert sim.anchored == list(sim.records)  # else a record looks as if it had been slipped in
        closed = [trial.id for trial in sim.trials.values() if trial.state == "closed"]
        assert sorted(sim.audits) == sorted(closed)

    @invariant()
    def one_open_trial_at_most_and_nothing_twice(self):
        sim = self.sim
        assert sum(trial.state == "open" for trial in sim.trials.values()) <= 1
        assert len(sim.audits) == len(set(sim.audits))
        assert set(sim.audits) <= set(sim.decisions)
        assert [trial.number for trial in sim.trials.values()] == list(range(1, len(sim.trials) + 1))


def test_any_order_of_events_comes_to_rest_in_a_right_state(make_sim):
    from hypothesis.stateful import run_state_machine_as_test

    AnyWorld.make = make_sim
    run_state_machine_as_test(
        AnyWorld, settings=settings(max_examples=150, stateful_step_count=30, deadline=None)
    )
