"""The controller against real MLflow, real Ray Serve and a real store; only the model is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from seatrial.config.service import ServiceConfig
from seatrial.controller.api import build
from seatrial.controller.loop import Controller
from seatrial.controller.webhooks import PATH, Receiver
from seatrial.reconcile import traffic
from seatrial.reconcile.serve import ServeApi
from seatrial.registry import audit, webhooks
from seatrial.registry.client import connect
from seatrial.store import Store, outcome_row
from tests.controller.server import serving

pytestmark = pytest.mark.slow
NAME, OTHER = "echo-chat", "echo-other"
SEATRIAL = (sys.executable, "-m", "seatrial.cli.main")
DEPLOYMENTS = (sys.executable, "-W", "ignore", "-m", "mlflow", "deployments")


class Bench:
    """A controller with its hands on the controls."""

    def __init__(self, cluster: Any, mlflow_uri: str) -> None:
        self.cluster = cluster
        self.uri = mlflow_uri
        self.store = Store(cluster.store_url)
        self.store.migrate()
        self.serve = ServeApi(cluster.dashboard, cluster.serve_url, lambda: cluster.token)
        self.controller = Controller(self.store, self.serve, mlflow_uri, holder="bench")
        self.client = connect(mlflow_uri)

    def deploy(self, **engine: Any) -> None:
        """What `seatrial deploy` writes down, with changes of the engine."""
        config = self.store.services()[NAME]["config"]
        self.store.put_service(NAME, config | {"engine": config["engine"] | engine}, now=time.time())

    def version(self, name: str = NAME) -> str:
        """A registered version with the tags that a Seatrial job gives it."""
        tags = {"seatrial.kind": "adapter", "seatrial.digest": uuid.uuid4().hex}
        run = self.client.create_run("0").info
        source = f"{run.artifact_uri}/model"
        return str(self.client.create_model_version(name, source, run.run_id, tags=tags).version)

    def alias(self, alias: str, version: str, name: str = NAME) -> None:
        self.client.set_registered_model_alias(name, alias, version)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in found.items()}

    def until(self, is_so: Callable[[], Any], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, (self.controller.report, self.store.services()[NAME]["state"])
            if not self.controller.one_pass():
                time.sleep(0.3)

    def wait_told(self) -> None:
        """Return when every replica has what Serve was last told."""
        deadline = time.monotonic() + 60
        while not self._is_told():
            assert time.monotonic() < deadline, self.store.replicas(NAME)
            time.sleep(0.1)

    def _is_told(self) -> bool:
        app = self.serve.apps()[NAME]
        assert app.config is not None
        revision = app.config["deployments"][0]["user_config"]["revision"]
        said = {row["replica_id"].split("#")[-1]: row["revision"] for row in self.store.replicas(NAME)}
        return all(said.get(replica) == revision for replica in app.replica_ids)

    def ask(self, unit: str, prefix: str = "/") -> dict[str, Any]:
        answer = httpx.get(f"{self.cluster.serve_url}{prefix}", params={"user": unit}, timeout=30)
        assert answer.status_code == 200
        body: dict[str, Any] = answer.json()
        return body

    def status(self) -> dict[str, Any]:
        with TestClient(build(self.controller)) as api:
            body: dict[str, Any] = api.get("/status").json()
            return body["services"][0]

    @contextmanager
    def running(self) -> Iterator[str]:
        """The loop in a thread and its API, until the end; its address."""
        stop = threading.Event()
        loop = threading.Thread(target=self.controller.run, args=(stop,), kwargs={"poll_s": 0.3})
        with serving(build(self.controller)) as url:
            loop.start()
            try:
                yield url
            finally:
                stop.set()
                self.controller.wake()
                loop.join(30)

    def does(self, url: str, *command: str) -> str:
        """What a command of a person prints, with the controller at ``url``."""
        env = {**os.environ, "SEATRIAL_STORE_URL": self.cluster.store_url, "MLFLOW_TRACKING_URI": self.uri}
        env |= {"SEATRIAL_CONTROLLER_URL": url, "SEATRIAL_SERVE_URL": self.cluster.serve_url}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def visit(self, units: int, rates: dict[str, float]) -> None:
        """Ask as so many distinct units, with outcomes at these rates."""
        self.wait_told()
        trial = self.store.latest_trial(NAME)
        exposures, outcomes, counts = [], [], {"champion": 0, "challenger": 0}
        for number in range(units):
            unit = f"{trial.id}-{number}"
            answer = self.ask(unit) if number < 20 else self.assigned(trial, unit)
            arm, version = answer["arm"], answer["version"]
            row = {"request_id": unit, "trial_id": trial.id, "service": NAME, "unit": unit, "sticky": True}
            row |= {"arm": arm, "assigned_version": version, "served_version": version, "fallback": False}
            exposures.append({**row, "status": 200, "at": time.time()})
            counts[arm] += 1
            is_hit = (counts[arm] * rates[arm]) % 1 < rates[arm]
            outcomes.append(outcome_row(NAME, unit, "resolved", float(is_hit), now=time.time()))
        self.store.add_exposures(exposures)
        self.store.add_outcomes(outcomes)

    def assigned(self, trial: Any, unit: str) -> dict[str, Any]:
        from seatrial.experiments.assignment import assign

        arm = assign(unit, trial.table)
        return {"arm": arm.name, "version": arm.version}


@pytest.fixture(scope="module")
def bench(cluster: Any, mlflow_uri: str) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "ENGINE", "echo_engine:build")
        made = Bench(cluster, mlflow_uri)
        config = ServiceConfig.model_validate(
            {
                "name": NAME,
                "engine": {"base": "models:/base/1", "replicas": 1},
                "http": {"allow_anonymous": True},
                "trial": {"minimum_units": 100},
            }
        )
        made.client.create_registered_model(NAME)
        made.store.put_service(NAME, config.model_dump(mode="json"), now=time.time())
        yield made
        made.serve.close()


def test_an_engine_that_cannot_start_says_why_and_deploying_again_tries_again(bench: Bench):
    bench.cluster.broken.write_text("engine")
    bench.until(lambda: bench.status()["state"] == "failed", timeout_s=180)
    assert "the base model is not there" in bench.status()["message"]
    assert not bench.controller.one_pass()
    bench.cluster.broken.write_text("")
    bench.deploy()
    bench.until(lambda: bench.status()["state"] == "waiting", timeout_s=120)


def test_the_whole_loop_from_an_empty_cluster_to_an_audited_promotion(bench: Bench):
    bench.until(lambda: bench.status()["state"] == "waiting", timeout_s=120)
    first = bench.version()
    bench.alias("champion", first)
    bench.until(lambda: bench.status()["state"] == "serving")
    bench.wait_told()
    assert bench.ask("anybody") == {"version": first, "arm": None}

    second = bench.version()
    bench.alias("challenger", second)
    bench.until(lambda: bench.status()["state"] == "trial")
    bench.visit(400, {"champion": 0.2, "challenger": 0.6})
    bench.controller.one_pass()
    running = bench.status()["trial"]
    assert (running["units"], running["exposures"], running["outcomes"]) == (400, 400, 400)
    assert running["waiting_for"]
    bench.until(lambda: bench.status()["trial"]["verdict"] == "promote")
    assert bench.aliases() == {"champion": second, "previous": first}
    bench.until(lambda: bench.status()["champion"] == second)
    bench.wait_told()
    assert bench.ask("anybody")["version"] == second

    record = audit.find(f"{NAME}-1", uri=bench.uri)
    assert record is not None
    assert (
        record.body["evidence"]["arms"][0]["stats"]["n"] + record.body["evidence"]["arms"][1]["stats"]["n"]
        == 400
    )
    assert audit.verify_chain(audit.chain(NAME, uri=bench.uri)) == []
    tags = bench.client.get_model_version(NAME, second).tags
    assert tags[f"seatrial.trial.{NAME}-1"] == "challenger: promote"
    closed = bench.status()["trial"]
    assert closed["lift"] > 1
    assert closed["interval"][0] > 0
    bench.until(lambda: not bench.controller.one_pass())


def test_a_new_engine_that_cannot_start_leaves_the_old_one_answering(bench: Bench):
    """With one replica: the new one must start beside it. Deploying again tries again."""
    serving = bench.aliases()["champion"]
    replicas = bench.serve.apps()[NAME].replica_ids
    assert len(replicas) == 1
    bench.cluster.broken.write_text("engine")
    bench.deploy(max_model_len=256)
    asked = 0

    def is_failed() -> bool:
        nonlocal asked
        assert bench.ask(f"during-{asked}")["version"] == serving
        asked += 1
        return bool(bench.status()["state"] == "failed")

    bench.until(is_failed, timeout_s=180)
    assert asked > 5
    assert "the base model is not there" in bench.status()["message"]
    assert not bench.controller.one_pass()
    assert bench.ask("after")["version"] == serving
    assert set(replicas) <= set(bench.serve.apps()[NAME].replica_ids)
    bench.cluster.broken.write_text("")
    bench.deploy(max_model_len=256)

    def is_replaced() -> bool:
        assert bench.ask("later")["version"] == serving
        return bench.status()["state"] == "serving"

    bench.until(is_replaced, timeout_s=120)
    bench.until(lambda: not set(replicas) & set(bench.serve.apps()[NAME].replica_ids))


def test_what_keeps_a_new_engine_from_starting_is_said_and_the_old_one_answers(bench: Bench):
    serving = bench.aliases()["champion"]
    before = bench.store.services()[NAME]["config"]["engine"]
    replicas = bench.serve.apps()[NAME].replica_ids
    bench.deploy(cpus=100)
    bench.until(lambda: "to be scheduled" in bench.status()["message"], timeout_s=120)
    assert bench.status()["state"] == "starting"
    assert bench.ask("meanwhile")["version"] == serving
    bench.deploy(**before)
    bench.until(lambda: bench.status()["state"] == "serving", timeout_s=120)
    assert bench.serve.apps()[NAME].replica_ids == replicas


def test_a_version_that_cannot_be_loaded_is_reported_and_never_serves(bench: Bench):
    before = bench.aliases()["champion"]
    bad = bench.version()
    bench.cluster.broken.write_text(bad)
    bench.alias("champion", bad)
    bench.until(lambda: "cannot be loaded" in bench.status()["message"])
    assert bench.ask("anybody")["version"] == before
    tags = bench.client.get_model_version(NAME, bad).tags
    assert tags["seatrial.load_error"] == "echo cannot load it"
    bench.alias("champion", before)
    bench.until(lambda: bench.status()["message"] == f"version {before} serves")


def test_a_person_who_moves_the_champion_in_mid_trial_has_their_way(bench: Bench):
    third = bench.version()
    bench.alias("challenger", third)
    bench.until(lambda: bench.status()["state"] == "trial")
    bench.visit(60, {"champion": 0.5, "challenger": 0.5})
    before = bench.aliases()["champion"]
    bench.alias("champion", third)
    bench.until(lambda: bench.status()["champion"] == third)
    bench.until(lambda: not bench.controller.one_pass())
    assert bench.aliases() == {"champion": third, "previous": before}
    last = bench.store.latest_trial(NAME)
    assert (last.number, last.verdict) == (2, "superseded")
    records = audit.chain(NAME, uri=bench.uri)
    told = [record.body["verdict"] for record in records]
    # Champions that earlier tests moved by hand have records of their own.
    assert [verdict for verdict in told if verdict != "alias"] == ["promote", "superseded"]
    assert audit.verify_chain(records) == []


@pytest.mark.parametrize("missing", ["mlflow", "ray", "token"])
def test_a_part_that_does_not_answer_stops_the_pass_and_nothing_else(bench: Bench, missing: str):
    dashboard = "http://127.0.0.1:9" if missing == "ray" else bench.cluster.dashboard
    token = "wrong" * 13 if missing == "token" else bench.cluster.token
    serve = ServeApi(dashboard, bench.cluster.serve_url, lambda: token)
    mlflow_uri = "http://127.0.0.1:9" if missing == "mlflow" else bench.uri
    blind = Controller(bench.store, serve, mlflow_uri, holder="bench")
    assert not blind.one_pass()
    serve.close()
    (error,) = blind.report.errors
    assert "\n" not in error
    assert bench.controller.one_pass() is False
    assert bench.controller.report.errors == ()


@pytest.mark.parametrize(("poll_s", "limit_s"), [(60.0, 10.0), (2.0, 15.0)])
def test_an_alias_reaches_the_answers_soon_with_a_hint_and_without(
    bench: Bench, poll_s: float, limit_s: float, monkeypatch: pytest.MonkeyPatch
):
    """On any machine; `benchmarks/alias_to_answer.py` measures it on a quiet one, with an engine."""
    monkeypatch.setattr("seatrial.controller.loop.FOLLOW_S", 1.0)
    secret, stop = "s" * 32, threading.Event()
    loop = threading.Thread(target=bench.controller.run, args=(stop,), kwargs={"poll_s": poll_s})
    with serving(build(bench.controller, Receiver(secret, bench.controller.wake))) as url:
        if poll_s == 60.0:  # no pass is due in time
            webhooks.ensure(f"{url}{PATH}", secret, uri=bench.uri)
        loop.start()
        try:
            time.sleep(2)  # what ran before is over, and no pass is due
            version = bench.version()
            began = time.monotonic()
            bench.alias("champion", version)
            while bench.ask("anybody")["version"] != version:
                assert time.monotonic() - began < limit_s
                time.sleep(0.02)
        finally:
            stop.set()
            bench.controller.wake()
            loop.join(30)
            for webhook in bench.client.list_webhooks():
                bench.client.delete_webhook(webhook.webhook_id)


def test_deleted_services_leave_with_their_trials_and_nobody_elses_address_moves(bench: Bench):
    """The last one, since it takes away what the others need."""
    bench.client.create_registered_model(OTHER)
    bench.alias("champion", bench.version(OTHER), OTHER)
    config = bench.store.services()[NAME]["config"]
    bench.store.put_service(OTHER, config | {"name": OTHER}, now=time.time())
    bench.alias("challenger", bench.version())
    bench.until(lambda: bench.status()["state"] == "trial")
    bench.until(lambda: bench.store.services()[OTHER]["state"].get("phase") == "serving", 120)
    before, trial = bench.aliases(), bench.store.latest_trial(NAME)
    assert set(bench.serve.apps()) == {NAME, OTHER}

    with bench.running() as url:
        said = bench.does(url, *SEATRIAL, "delete", NAME)
        assert f"{NAME}: deleted" in said
        assert set(bench.serve.apps()) == set(bench.store.services()) == {OTHER}
        assert bench.ask("anybody", f"/{OTHER}") == {"version": "1", "arm": None}
        assert httpx.get(f"{bench.cluster.serve_url}/").status_code == 404
        said = bench.does(url, *DEPLOYMENTS, "delete", "-t", "seatrial", "--name", OTHER)
        assert f"Deployment {OTHER} is deleted" in said
    assert bench.serve.apps() == bench.store.services() == {}
    assert bench.store.replicas(NAME) == bench.store.replicas(OTHER) == []

    ended = bench.store.trial(trial.id)
    assert (ended.state, ended.verdict, ended.reason) == ("closed", "superseded", "the service was deleted")
    records = audit.chain(NAME, uri=bench.uri)
    assert records[-1].body["verdict"] == "superseded"
    assert audit.verify_chain(records) == []
    assert bench.aliases() == before
    assert not bench.controller.one_pass()

    bench.client.delete_registered_model_alias(NAME, "challenger")
    bench.store.put_service(NAME, config, now=time.time())
    bench.until(lambda: bench.status()["state"] == "serving", timeout_s=120)
    bench.wait_told()
    assert bench.ask("anybody") == {"version": before["champion"], "arm": None}
