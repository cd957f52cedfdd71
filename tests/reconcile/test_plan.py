"""Planning, in a world in memory."""

import pytest

from seatrial.reconcile.plan import plan


def test_a_new_service_gets_an_application_without_traffic(sim):
    sim.run()
    assert sim.apps["support-chat"]["import_path"] == "seatrial_serving.application:build"
    assert sim.apps["support-chat"]["deployments"][0]["num_replicas"] == 2
    assert sim.told["traffic"] is None
    assert sim.state.phase == "waiting"
    assert "champion" in sim.state.message


def test_nothing_that_can_change_on_the_fly_stands_in_the_arguments(sim):
    sim.run()
    service = sim.apps["support-chat"]["args"]["service"]
    assert set(service) == {"name", "engine"}
    assert "replicas" not in service["engine"]
    assert sim.told["http"]["allow_anonymous"] is True


def test_a_champion_is_loaded_before_it_gets_traffic(sim):
    sim.aliases["champion"] = "1"
    sim.one_pass()
    assert [entry["version"] for entry in sim.told["preload"]] == ["1"]
    assert sim.told["traffic"] is None
    sim.run()
    assert sim.traffic["aliases"] == {"champion": "1"}
    assert (sim.state.phase, sim.state.served) == ("serving", "1")


def test_one_silent_replica_holds_the_traffic_back(sim):
    sim.aliases["champion"] = "1"
    sim.one_pass()
    sim.listed = ["r1"]
    sim.tick()
    sim.listed = ["r1", "r2"]
    sim.one_pass()
    assert sim.told["traffic"] is None
    assert "being loaded" in sim.state.message or "starting" in sim.state.message


def test_a_replica_that_has_gone_silent_is_not_counted_upon(sim):
    sim.aliases["champion"] = "1"
    sim.one_pass()
    sim.tick()
    sim.now += 31
    sim.one_pass()
    assert sim.told["traffic"] is None


def test_a_manual_move_sets_previous_to_what_was_served(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.aliases["champion"] = "2"
    sim.run()
    assert sim.aliases == {"champion": "2", "previous": "1"}
    assert sim.traffic["aliases"] == {"champion": "2", "previous": "1"}
    sim.aliases["champion"] = "1"  # what `seatrial rollback` does
    sim.run()
    assert sim.aliases == {"champion": "1", "previous": "2"}


def test_a_champion_that_cannot_be_loaded_never_gets_traffic(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.broken.add("2")
    sim.aliases["champion"] = "2"
    sim.run()
    assert sim.traffic["aliases"]["champion"] == "1"
    assert "version 1 goes on" in sim.state.message
    assert "broken" in sim.state.message
    assert sim.tags["2", "seatrial.load_error"] == "the file is broken"
    assert "previous" not in sim.aliases


def test_a_first_champion_that_cannot_be_loaded_is_a_failure_with_its_reason(sim):
    sim.broken.add("1")
    sim.aliases["champion"] = "1"
    sim.run()
    assert sim.told["traffic"] is None
    assert sim.state.phase == "failed"
    assert "the file is broken" in sim.state.message


def test_what_has_ended_an_engine_is_not_tried_again_until_a_person_asks_for_it(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.deadly.add("2")
    sim.aliases["challenger"] = "2"
    sim.run()
    sim.now += 30 * 86400
    sim.run()
    assert sim.state.refused["2"].tries == 1
    assert [entry["version"] for entry in sim.told["preload"]] == ["1"]
    sim.deadly.clear()
    del sim.aliases["challenger"]
    sim.run()
    sim.aliases["challenger"] = "2"
    sim.run()
    assert sim.trials["support-chat-1"].challenger == "2"


def test_a_challenger_that_cannot_be_loaded_opens_no_trial_and_is_tried_again_later(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.broken.add("2")
    sim.aliases["challenger"] = "2"
    sim.run()
    assert sim.trials == {}
    assert sim.aliases["challenger"] == "2"
    assert sim.state.refused["2"].tries == 1
    tried = len(sim.writes)
    sim.now += 30
    sim.run()
    assert [type(action) for action in sim.writes[tried:]] == []
    sim.now += 31
    sim.run()
    assert sim.state.refused["2"].tries == 2
    sim.broken.clear()
    sim.now += 121
    sim.run()
    assert sim.state.refused == {}
    assert ("2", "seatrial.load_error") not in sim.tags
    assert sim.trials["support-chat-1"].challenger == "2"


def test_what_a_replica_says_of_a_hostile_version_makes_a_terminal_do_nothing(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.refusing = "\x1b]0;owned\x07the file \x1b[2Ja.safetensors\x00\r\nis broken"
    sim.aliases["champion"] = "2"
    sim.run()
    sim.now += 60
    sim.run()
    assert "the file a.safetensors is broken" in sim.state.message
    assert sim.state.message.isprintable()


def test_a_clock_that_is_set_back_makes_no_version_wait_for_it(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.broken.add("2")
    sim.aliases["challenger"] = "2"
    sim.run()
    sim.broken.clear()
    sim.now -= 86_400
    sim.run()
    assert sim.trials["support-chat-1"].challenger == "2"


def test_deploying_again_what_failed_to_start_changes_what_serve_is_told_once(sim):
    sim.run()
    first = sim.args
    sim.status = "DEPLOY_FAILED"
    sim.run()
    assert sim.args == first
    sim.config_at = 2.0
    sim.one_pass()
    again = sim.args
    assert {key for key in again if again[key] != first[key]} == {"attempt"}
    sim.run()
    assert sim.args == again


@pytest.mark.parametrize("status", ["DEPLOYING", "DEPLOY_FAILED"])
def test_going_back_to_the_engine_that_runs_ends_the_attempt_at_replacing_it(sim, status):
    sim.run()
    first = sim.args
    sim.config["engine"]["max_model_len"] = 256
    sim.config_at = 2.0
    sim.one_pass()
    assert sim.args != first
    sim.status = status
    sim.run()
    sim.config["engine"]["max_model_len"] = first["service"]["engine"]["max_model_len"]
    sim.config_at = 3.0
    sim.one_pass()
    assert sim.args == first
    sim.status = "RUNNING"
    sim.run()
    assert (sim.state.phase, sim.state.config_at) == ("waiting", 3.0)


def test_rules_that_change_on_the_fly_replace_no_replica(sim):
    sim.run()
    before = sim.args
    sim.config["http"]["max_tokens"] = 7
    sim.config_at = 2.0
    sim.run()
    assert sim.told["http"]["max_tokens"] == 7
    assert sim.args == before


def test_setting_the_alias_again_tries_at_once(sim):
    sim.aliases["champion"] = "1"
    sim.broken.add("2")
    sim.aliases["challenger"] = "2"
    sim.run()
    del sim.aliases["challenger"]
    sim.run()
    assert sim.state.refused == {}
    sim.broken.clear()
    sim.aliases["challenger"] = "2"
    sim.run()
    assert sim.trials["support-chat-1"].challenger == "2"


def test_an_unlabelled_version_is_refused_without_being_tried(make_sim):
    sim = make_sim(kinds={"2": "none"})
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    assert [entry["version"] for entry in sim.told["preload"]] == ["1"]
    assert "seatrial.kind" in sim.tags["2", "seatrial.load_error"]
    assert "no trial" in sim.state.message


def test_a_new_replica_takes_no_traffic_away(sim):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    before = sim.told
    sim.listed.append("r3")
    sim.one_pass()
    assert sim.told == before


def test_after_serve_was_restarted_everything_comes_back(sim):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    before = sim.traffic
    sim.apps, sim.rows = {}, {}
    sim.one_pass()
    assert sim.told["traffic"] is None
    sim.run()
    assert sim.traffic == before
    assert len(sim.trials) == 1


def test_after_a_restart_with_a_broken_wish_the_old_champion_serves(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.broken.add("2")
    sim.aliases["champion"] = "2"
    sim.run()
    sim.apps, sim.rows = {}, {}
    sim.run()
    assert sim.traffic["aliases"]["champion"] == "1"


def test_what_replicas_said_of_an_older_configuration_is_not_counted_upon(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.apps = {}
    sim.config["http"]["max_tokens"] = 7
    sim.one_pass()
    sim.one_pass()
    assert sim.told["http"]["max_tokens"] == 7
    assert sim.told["traffic"] is None
    sim.run()
    assert sim.traffic["aliases"]["champion"] == "1"


def test_without_a_champion_alias_the_last_champion_goes_on(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    del sim.aliases["champion"]
    sim.run()
    assert sim.traffic["aliases"] == {"champion": "1"}
    assert sim.state.phase == "serving"
    assert "version 1 goes on; set the alias `champion`" in sim.state.message
    sim.apps, sim.rows = {}, {}  # Serve was started anew
    sim.run()
    assert sim.traffic["aliases"] == {"champion": "1"}
    sim.aliases["champion"] = "2"
    sim.run()
    assert sim.traffic["aliases"] == {"champion": "2", "previous": "1"}


def test_a_version_that_a_replica_goes_on_trying_is_waited_for_and_said_so(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.delayed.add("2")
    sim.aliases["champion"] = "2"
    sim.run()
    assert sim.state.message == (
        "champion 2 is being loaded (MLflow does not answer, trying again): version 1 goes on"
    )
    assert sim.state.refused == {}
    assert ("2", "seatrial.load_error") not in sim.tags
    sim.delayed.clear()
    sim.run()
    assert sim.traffic["aliases"]["champion"] == "2"


def test_a_configuration_that_replicas_refuse_is_a_failure_with_its_reason(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.config["http"]["max_tokens"] = 7
    sim.config_at = 2.0
    sim.refusing = "keys are off and 0.0.0.0 is not on loopback"
    sim.run()
    assert sim.state.phase == "starting"  # what they say may be of an earlier configuration
    sim.now += 20
    sim.run()
    assert (sim.state.phase, sim.state.config_at) == ("failed", 2.0)
    assert "refused (keys are off and 0.0.0.0 is not on loopback)" in sim.state.message
    assert sim.traffic["aliases"]["champion"] == "1"
    sim.refusing = ""
    sim.config["http"]["max_tokens"] = 8
    sim.config_at = 3.0
    sim.run()
    assert sim.state.phase == "serving"


def test_an_old_refusal_is_not_taken_for_one_of_what_was_told_just_now(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.config["http"]["max_tokens"] = 7
    sim.config_at = 2.0
    sim.refusing = "no"
    sim.run()
    sim.now += 20
    sim.run()
    assert sim.state.phase == "failed"
    sim.config["http"]["max_tokens"] = 8
    sim.config_at = 3.0
    sim.one_pass()
    sim.one_pass()
    assert sim.state.phase == "starting"


def test_replacements_start_beside_the_old_replicas(make_sim):
    sim = make_sim(kinds={"2": "full"})
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    assert len(sim.apps) == 2
    for app in sim.apps.values():
        assert app["deployments"][0]["max_surge_percent"] == 100


def test_what_keeps_replacements_from_starting_is_said(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    sim.config["engine"]["max_model_len"] = 256
    sim.config_at = 2.0
    sim.status, sim.message = "DEPLOYING", "1 replicas that have taken more than 30s to be scheduled"
    sim.listed = ["r1", "r2", "new"]
    sim.one_pass()
    sim.one_pass()
    assert sim.state.phase == "starting"
    assert "more than 30s to be scheduled" in sim.state.message


def test_a_whole_model_gets_an_application_of_its_own_and_keeps_it_while_it_may_be_called(make_sim):
    sim = make_sim(kinds={"2": "full"})
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    full = sim.apps["support-chat--v2"]
    assert full["import_path"] == "seatrial_serving.application:build_full"
    assert full["route_prefix"] is None
    assert full["args"]["version"] == "2"
    assert sim.told["preload"][1]["app"] == "support-chat--v2"
    del sim.aliases["challenger"]
    sim.one_pass()
    sim.one_pass()
    assert "support-chat--v2" in sim.apps
    sim.run()
    assert "support-chat--v2" not in sim.apps


def test_more_replicas_change_the_number_only(sim):
    sim.aliases["champion"] = "1"
    sim.run()
    before = sim.apps["support-chat"]
    sim.config["engine"]["replicas"] = 3
    sim.run()
    after = sim.apps["support-chat"]
    assert after["deployments"][0]["num_replicas"] == 3
    assert after["args"] == before["args"]
    assert after["deployments"][0]["user_config"] == before["deployments"][0]["user_config"]


def test_applications_of_others_are_left_alone(sim):
    other = {"name": "other", "import_path": "x:y"}
    sim.apps["other"] = other
    sim.aliases["champion"] = "1"
    sim.run()
    assert sim.apps["other"] is other


def test_a_second_pass_writes_nothing(sim):
    sim.aliases |= {"champion": "1", "challenger": "2"}
    sim.run()
    sim.rates = {"champion": (30, 10), "challenger": (30, 12)}
    sim.run()
    assert plan(*sim.observe(), sim.now) == []
    assert plan(*sim.observe(), sim.now + 5) == []
