"""A service that is deleted: its trial ends first, then its engines, then what is known of it."""

import dataclasses

from seatrial.reconcile import actions as do
from seatrial.reconcile.plan import plan
from seatrial.reconcile.world import AppStatus, Desired, Observed
from tests.reconcile.conftest import NAME


def in_a_trial(make_sim):
    sim = make_sim(kinds={"2": "full"})
    sim.aliases["champion"] = "1"
    sim.run()
    sim.aliases["challenger"] = "2"
    sim.run()
    assert sim.traffic["trial"]
    assert set(sim.apps) == {NAME, f"{NAME}--v2"}
    return sim


def test_the_trial_ends_superseded_and_recorded_and_only_then_the_engines_and_the_row_go(make_sim):
    sim = in_a_trial(make_sim)
    before, sim.writes = dict(sim.aliases), []
    sim.deleted_at = sim.now
    sim.run()
    (trial,) = sim.trials.values()
    assert (trial.state, trial.verdict) == ("closed", "superseded")
    assert sim.decisions[trial.id].reason == "the service was deleted"
    assert sim.audits == [trial.id]
    assert sim.apps == {}
    assert not sim.is_there
    assert sim.aliases == before
    kinds = [type(action) for action in sim.writes]
    order = [kinds.index(each) for each in (do.Decide, do.WriteAudit, do.CloseTrial, do.PutApps)]
    assert order == sorted(order)
    assert kinds[-1] is do.RemoveService
    (put,) = [action for action in sim.writes if isinstance(action, do.PutApps)]
    assert put.apps == ()
    assert put.owned == (NAME, f"{NAME}--v2")


def test_the_row_stays_while_serve_still_lists_an_application(make_sim):
    sim = in_a_trial(make_sim)
    sim.deleted_at = sim.now
    while sim.apps:
        last = dict(sim.apps)
        assert sim.one_pass()
    assert sim.is_there
    desired, observed = sim.observe()
    assert sim.state.phase == "deleting"
    ending = {name: AppStatus(name, "DELETING", "", app, ("r1",)) for name, app in last.items()}
    assert plan(desired, dataclasses.replace(observed, apps=ending), sim.now) == []
    assert plan(desired, observed, sim.now) == [do.RemoveService(NAME, sim.deleted_at)]


def test_other_services_applications_are_left_alone(make_sim):
    sim = in_a_trial(make_sim)
    other = AppStatus(f"{NAME}-2", "RUNNING", "", {"name": f"{NAME}-2"}, ("x",))
    sim.deleted_at = sim.now
    put = None
    for _ in range(10):
        desired, observed = sim.observe()
        actions = plan(desired, Observed({**observed.apps, other.name: other}, observed.services), sim.now)
        put = next((each for each in actions if isinstance(each, do.PutApps)), put)
        sim.one_pass()
    assert put is not None
    assert other.name not in put.owned
    assert not sim.is_there


def test_a_service_that_never_ran_goes_at_once(sim):
    sim.deleted_at = sim.now
    sim.one_pass()
    assert not sim.is_there
    assert sim.observe()[0] == Desired(())


def test_deployed_again_before_it_is_gone_it_stays(make_sim):
    sim = in_a_trial(make_sim)
    sim.deleted_at = sim.now
    while sim.apps:
        sim.one_pass()
    late = plan(*sim.observe(), sim.now)
    sim.deleted_at, sim.config_at = None, sim.now
    sim.apply(late[-1])
    assert isinstance(late[-1], do.RemoveService)
    sim.run()
    assert sim.is_there
    assert sim.traffic["aliases"]["champion"] == "1"
    assert sim.state.phase == "trial"
    assert [trial.number for trial in sim.trials.values()] == [1, 2]
