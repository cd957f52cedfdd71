"""Passes of the controller with a real store and a real MLflow server, and a clock of their own."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import event
from starlette.testclient import TestClient

from seatrial.config.service import ServiceConfig
from seatrial.controller.api import build
from seatrial.controller.leadership import LEASE_S
from seatrial.controller.loop import Controller
from seatrial.experiments.assignment import assign
from seatrial.experiments.verdict import STALE_S
from seatrial.reconcile.actions import Action, MoveAlias, TagVersion
from seatrial.reconcile.apply import Applier
from seatrial.registry import audit
from seatrial.registry.client import connect
from seatrial.store import Store, outcome_row
from tests.controller.one_replica import OneReplica

pytestmark = pytest.mark.slow
AWAY = "http://127.0.0.1:9"


class FaultyApplier(Applier):
    """Fails for services in ``faulty`` as a library does that nobody expected to."""

    faulty: frozenset[str] = frozenset()
    tried = 0

    def apply(self, action: Action) -> None:
        if action.service in self.faulty:
            self.tried += 1
            raise requests.HTTPError("507 Insufficient Storage\nfor url: http://storage")
        super().apply(action)


class Desk:
    """Services whose controller is asked for one pass at a time."""

    def __init__(self, uri: str, folder: Path, *names: str) -> None:
        self.uri = uri
        self.now = 1_000_000.0
        self.names = names
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.store.migrate()
        self.serve = OneReplica(self.store, self.clock)
        self.client = connect(uri)
        self.applier = FaultyApplier(self.store, self.serve, uri)
        self.controller = self.another("desk", applier=self.applier)
        for name in names:
            self.client.create_registered_model(name)
            self.deploy(name)

    def clock(self) -> float:
        return self.now

    def another(self, holder: str, **more: Any) -> Controller:
        given = {"clock": self.clock, "holder": holder, **more}
        return Controller(self.store, self.serve, self.uri, **given)

    def deploy(self, name: str, **trial: Any) -> None:
        http = {"allow_anonymous": True}
        config = {"name": name, "engine": {"base": "models:/base/1"}, "http": http, "trial": trial}
        row = ServiceConfig.model_validate(config).model_dump(mode="json")
        self.store.put_service(name, row, now=self.now)

    def alias(self, name: str, alias: str) -> str:
        run = self.client.create_run("0").info
        tags = {"seatrial.kind": "adapter", "seatrial.digest": f"{name}-{alias}"}
        version = self.client.create_model_version(name, f"{run.artifact_uri}/m", run.run_id, tags=tags)
        self.client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def rest(self) -> None:
        """Passes until two in a row have nothing to follow up: the first may have kept a state."""
        passes = [self.controller.one_pass() for _ in range(2)]
        while any(passes[-2:]):
            assert len(passes) < 30
            passes.append(self.controller.one_pass())

    def traffic(self, name: str) -> Any:
        return self.serve.deployed[name]["deployments"][0]["user_config"]["traffic"]

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = self.store.services()[name]["state"]
        return state

    def expose(self, name: str, *units: str) -> None:
        trial = self.store.latest_trial(name)
        row = {"trial_id": trial.id, "service": name, "sticky": True, "fallback": False, "status": 200}
        row |= {"arm": "champion", "assigned_version": "1", "served_version": "1", "at": self.now}
        self.store.add_exposures([{**row, "request_id": unit, "unit": unit} for unit in units])

    def visit(self, name: str, units: int, *, fails: str = "", hits: str = "") -> None:
        """So many units, each with one request and one outcome; those of the arm ``fails`` are errors."""
        trial = self.store.latest_trial(name)
        exposures, outcomes = [], []
        for number in range(units):
            unit = f"{trial.id}-{number}"
            arm = assign(unit, trial.table)
            row = {"request_id": unit, "trial_id": trial.id, "service": name, "unit": unit, "sticky": True}
            row |= {"arm": arm.name, "assigned_version": arm.version, "served_version": arm.version}
            row |= {"fallback": False, "at": self.now}
            is_failed = arm.name == fails
            said = {"status": 500, "error": "it broke"} if is_failed else {"status": 200, "error": None}
            exposures.append({**row, **said})
            value = float(number % 5 == 0 or arm.name == hits)
            outcomes.append(outcome_row(name, unit, "resolved", value, now=self.now))
        self.store.add_exposures(exposures)
        self.store.add_outcomes(outcomes)

    def aliases(self, name: str) -> dict[str, str]:
        found = self.client.get_registered_model(name).aliases
        return {alias: str(version) for alias, version in found.items()}

    def ask(self, path: str) -> Any:
        with TestClient(build(self.controller)) as api:
            return api.get(path)

    def trial(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("/status").json()["services"][0]["trial"]
        return found


@pytest.fixture
def desk(mlflow_uri: str, tmp_path: Path) -> Desk:
    stem = uuid.uuid4().hex[:12]
    return Desk(mlflow_uri, tmp_path, f"{stem}-a", f"{stem}-b")


@pytest.mark.parametrize("is_made_again", [False, True], ids=["no model", "a model without versions"])
def test_an_empty_registry_changes_nothing_and_is_reported(desk: Desk, is_made_again: bool):
    name, other = desk.names
    desk.alias(name, "champion")
    desk.alias(name, "challenger")
    desk.alias(other, "champion")
    desk.rest()
    before, state = desk.traffic(name), desk.state(name)
    assert before["trial"] is not None
    desk.client.delete_registered_model(name)
    if is_made_again:
        desk.client.create_registered_model(name)
    desk.deploy(other)
    desk.rest()
    assert (desk.traffic(name), desk.state(name)) == (before, state)
    assert desk.store.decision(f"{name}-1") is None
    (error,) = desk.controller.report.errors
    assert error.startswith(f"{name}: MLflow has no ")
    assert "version 1 goes on" in error
    assert error in desk.ask("/status").json()["error"]
    desk.visit(name, 400, fails="challenger")  # what it loses, it loses on evidence
    for _ in range(2):
        desk.controller.one_pass()
    assert desk.traffic(name) == {**before, "trial": None}


@pytest.mark.parametrize("is_new", [False, True], ids=["", "and the controller started anew"])
def test_a_loser_has_no_users_while_mlflow_is_away_and_is_closed_when_it_is_back(desk: Desk, is_new: bool):
    name, other = desk.names
    for alias in ("champion", "challenger"):
        desk.alias(name, alias)
    desk.alias(other, "champion")
    desk.rest()
    before, untouched, state = desk.aliases(name), desk.traffic(other), desk.state(name)
    if is_new:
        desk.controller = desk.another("desk", applier=desk.applier)
    desk.controller.mlflow_uri = AWAY
    desk.visit(name, 400, fails="challenger")
    for _ in range(2):
        desk.controller.one_pass()
    assert desk.traffic(name)["trial"] is None
    decision = desk.store.decision(f"{name}-1")
    assert decision.verdict == "roll_back"
    for _ in range(3):
        desk.now += 60
        assert not desk.controller.one_pass()
    assert (desk.aliases(name), desk.traffic(other), desk.state(name)) == (before, untouched, state)
    (error,) = desk.controller.report.errors
    assert error.startswith("MLFLOW_TRACKING_URI: http://127.0.0.1:9: does not answer")
    assert error == desk.ask("/healthz").json()["error"] == desk.ask("/status").json()["error"]
    assert desk.ask("/healthz").json()["ok"] is True
    desk.controller.mlflow_uri = desk.uri
    desk.rest()
    assert desk.controller.report.errors == ()
    assert desk.aliases(name) == {"champion": before["champion"]}
    (record,) = audit.chain(name, uri=desk.uri)
    assert record.body["verdict"] == "roll_back"
    assert desk.store.decision(f"{name}-1") == decision
    assert desk.store.latest_trial(name).state == "closed"


def test_a_winner_is_promoted_only_when_mlflow_is_back(desk: Desk):
    name, _ = desk.names
    desk.deploy(name, minimum_units=100)
    for alias in ("champion", "challenger"):
        desk.alias(name, alias)
    desk.rest()
    before, told, seen = desk.aliases(name), desk.traffic(name), desk.controller.report.aliases[name]
    desk.controller.mlflow_uri = AWAY
    desk.visit(name, 400, hits="challenger")
    for _ in range(3):
        desk.now += 60
        desk.controller.one_pass()
    assert desk.store.decision(f"{name}-1") is None
    assert (desk.aliases(name), desk.traffic(name)) == (before, told)
    assert desk.controller.report.aliases[name] == seen
    assert desk.trial()["units"] == 400
    desk.controller.mlflow_uri = desk.uri
    desk.rest()
    assert desk.aliases(name) == {"champion": before["challenger"], "previous": before["champion"]}


def test_a_registry_that_takes_no_writes_leaves_nobody_with_a_loser(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    name, _ = desk.names
    for alias in ("champion", "challenger"):
        desk.alias(name, alias)
    desk.rest()
    before = desk.aliases(name)
    send = requests.adapters.HTTPAdapter.send

    def refuse(adapter: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.method != "GET":
            raise requests.ConnectionError("the disk is full")
        return send(adapter, request, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(requests.adapters.HTTPAdapter, "send", refuse)
        desk.visit(name, 400, fails="challenger")
        for _ in range(2):
            desk.controller.one_pass()
        assert desk.traffic(name)["trial"] is None
        assert desk.aliases(name) == before
        (error,) = desk.controller.report.errors
        assert error.startswith(f"{name}: MoveAlias: MLflow: ")
    desk.now += 60
    desk.rest()
    assert desk.aliases(name) == {"champion": before["champion"]}


def test_a_service_without_a_registered_model_waits_for_its_first_version(desk: Desk):
    name, _ = desk.names
    desk.client.delete_registered_model(name)
    desk.rest()
    assert desk.state(name)["phase"] == "waiting"
    assert desk.controller.report.errors == ()


def test_a_service_that_fails_unexpectedly_rests_and_keeps_no_other_waiting(
    desk: Desk, caplog: pytest.LogCaptureFixture
):
    bad, good = desk.names
    for name in desk.names:
        desk.alias(name, "champion")
    desk.applier.faulty = frozenset({bad})
    with caplog.at_level(logging.WARNING, "seatrial.controller"):
        desk.rest()
        assert desk.state(good)["phase"] == "serving"
        assert desk.applier.tried == 1
        began = desk.now
        tried_at = []
        for _ in range(200):
            desk.now += 1
            before = desk.applier.tried
            assert desk.controller.one_pass() is False
            if desk.applier.tried > before:
                tried_at.append(desk.now - began)
    assert tried_at[:5] == [2, 6, 14, 30, 62]
    assert tried_at[5:] == [122, 182]
    (error,) = desk.controller.report.errors
    assert error == f"{bad}: PutState: HTTPError: 507 Insufficient Storage"
    said = [record for record in caplog.records if record.getMessage() == error]
    assert 1 <= len(said) <= 4
    assert all(record.exc_info for record in said)
    desk.applier.faulty = frozenset()
    desk.deploy(bad)  # somebody changes something: it is tried at once
    desk.rest()
    assert desk.state(bad)["phase"] == "serving"


def test_a_row_that_cannot_be_read_keeps_no_other_waiting(desk: Desk):
    bad, good = desk.names
    desk.alias(good, "champion")
    desk.store.put_state(bad, {"phase": "serving", "colour": "red"})
    desk.rest()
    assert desk.state(good)["phase"] == "serving"
    (error,) = desk.controller.report.errors
    assert error.startswith(f"{bad}: TypeError:")


def test_an_alias_or_tag_of_a_version_that_somebody_deleted_needs_nothing_more(desk: Desk):
    name, _ = desk.names
    version = desk.alias(name, "champion")
    gone = str(int(version) + 1)
    desk.applier.apply(MoveAlias(name, "champion", gone, version))
    desk.applier.apply(TagVersion(name, gone, "seatrial.trial.x", "challenger: promote"))
    desk.applier.apply(TagVersion(name, gone, "seatrial.load_error", None))
    aliases = desk.client.get_registered_model(name).aliases
    assert {alias: str(each) for alias, each in aliases.items()} == {"champion": version}


def test_one_of_two_controllers_acts_until_its_lease_runs_out(desk: Desk):
    name, _ = desk.names
    second = desk.another("second")
    assert desk.controller.one_pass()
    assert not second.one_pass()
    assert second.report.errors == ("standing by: desk acts",)
    with TestClient(build(second)) as api:
        health, status = api.get("/healthz"), api.get("/status")
    assert (health.json()["leader"], health.json()["leads"]) == ("desk", False)
    assert status.json()["leader"] == "desk"
    desk.alias(name, "champion")
    desk.now += LEASE_S - 1
    assert not second.one_pass()
    desk.now += 2
    for _ in range(30):
        if not second.one_pass():
            break
    assert desk.state(name)["phase"] == "serving"
    assert not desk.controller.one_pass()
    assert desk.controller.report.errors == ("standing by: second acts",)
    second.leadership.resign()
    desk.rest()
    assert desk.controller.report.errors == ()


def test_a_controller_that_lost_its_lease_in_mid_pass_does_nothing_more(desk: Desk):
    class SlowApplier(Applier):
        done = 0

        def apply(self, action: Action) -> None:
            super().apply(action)
            self.done += 1
            desk.now += LEASE_S + 1
            desk.store.take_lease("controller", "second", now=desk.now, lasts_s=LEASE_S)

    slow = SlowApplier(desk.store, desk.serve, desk.uri)
    desk.another("slow", applier=slow).one_pass()
    assert slow.done == 1


def test_a_look_reads_only_what_is_new_and_status_reads_nothing(desk: Desk):
    name, _ = desk.names
    for alias in ("champion", "challenger"):
        desk.alias(name, alias)
    desk.rest()
    read = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM exposures" in statement:
            read.append(1)

    event.listen(desk.store.engine, "before_cursor_execute", note)
    desk.expose(name, "ann", "bob")
    desk.controller.one_pass()
    assert desk.trial()["units"] == 2
    once = len(read)
    assert once > 0
    for controller in (desk.controller, desk.another("desk")):
        desk.now += 60
        controller.one_pass()
    assert desk.trial()["units"] == 2
    assert len(read) == once
    desk.expose(name, "cat")
    desk.controller.one_pass()
    assert desk.trial()["units"] == 3
    assert len(read) == 2 * once


def test_a_verdict_is_reached_on_what_is_there_at_that_moment(desk: Desk):
    name, _ = desk.names
    for alias in ("champion", "challenger"):
        desk.alias(name, alias)
    desk.rest()
    deadline_h = desk.store.latest_trial(name).policy["deadline_h"]
    desk.now += deadline_h * 3600 - 5
    desk.controller.one_pass()
    desk.expose(name, "ann")
    desk.now += 10
    desk.controller.one_pass()
    decision = desk.store.decision(f"{name}-1")
    assert decision.verdict == "inconclusive"
    assert decision.evidence.units == 1


def test_a_winner_waits_while_a_replica_has_told_the_store_nothing_for_long(desk: Desk):
    name, _ = desk.names
    for alias in ("champion", "challenger"):
        desk.alias(name, alias)
    desk.rest()
    desk.visit(name, 400, hits="challenger")
    desk.now += STALE_S + 1
    desk.controller.one_pass()
    assert desk.store.decision(f"{name}-1") is None
    assert desk.trial()["waiting_for"] == f"the evidence is {STALE_S + 1:.0f} s old"
    desk.serve.speak()  # what had come until now is in the store
    desk.rest()
    decision = desk.store.decision(f"{name}-1")
    assert (decision.verdict, decision.evidence.taken_at) == ("promote", desk.now)


def test_health_is_bad_before_the_first_pass(desk: Desk):
    fresh = desk.ask("/healthz")
    assert fresh.status_code == 503
    assert fresh.json()["error"].startswith("no pass is over yet")


@pytest.mark.parametrize("revision", ["0001", "9999"])
def test_a_store_that_cannot_be_used_is_reported_and_ends_nothing(desk: Desk, revision: str):
    """Tables of a newer Seatrial, and ones that are not what their own revision says."""
    with desk.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = ?", (revision,))
    assert desk.controller.one_pass() is False
    answer = desk.ask("/healthz")
    assert answer.status_code == 503
    assert revision in answer.json()["error"] or "leases already exists" in answer.json()["error"]


def test_health_is_bad_while_the_store_is_away_and_good_again_after(desk: Desk):
    desk.rest()
    assert desk.ask("/healthz").json()["ok"] is True
    desk.store.close()
    path = Path(desk.store.engine.url.database)
    files = [path.with_name(f"{path.name}{end}") for end in ("", "-wal", "-shm")]
    kept = {file: file.read_bytes() for file in files if file.exists()}
    for file in kept:
        file.unlink()
    path.mkdir()
    desk.now += 30
    assert desk.controller.one_pass() is False
    answer = desk.ask("/healthz")
    assert (answer.status_code, answer.json()["ok"]) == (503, False)
    assert "store" in answer.json()["error"]
    path.rmdir()
    for file, content in kept.items():
        file.write_bytes(content)
    desk.controller.one_pass()
    assert desk.ask("/healthz").json()["ok"] is True
