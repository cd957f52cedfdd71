"""Audit records against a real MLflow server: one for each trial, whoever writes and whatever is deleted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from seatrial.config.trial import TrialSection
from seatrial.errors import RetryableError
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.trial import Decision, Trial
from seatrial.experiments.verdict import TrialPolicy, judge
from seatrial.registry import aliases, audit, runs
from seatrial.registry.client import NotRegisteredError, connect

pytestmark = pytest.mark.slow


def trial_of(service: str, number: int = 1) -> tuple[Trial, Decision]:
    policy = TrialSection().model_dump(mode="json")
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "2", 0.5))
    name = f"{service}-{number}"
    trial = Trial(
        name,
        service,
        number,
        "open",
        TrialTable(name, "seed", 1.0, arms),
        policy,
        "1",
        {"challenger": "2"},
        1000.0,
        1000.0,
    )
    evidence = Evidence(2000.0, tuple(ArmEvidence.empty(arm.name, arm.version) for arm in arms))
    shares = {arm.name: arm.weight for arm in arms}
    judgement = judge(TrialPolicy.from_json(policy), shares, 1000.0, evidence, 2000.0)
    return trial, Decision(name, name, service, "promote", "why", "who", evidence, judgement, 2000.0)


def make_model(uri: str, name: str, versions: int) -> Any:
    client = connect(uri)
    client.create_registered_model(name)
    for _ in range(versions):
        run = client.create_run("0").info
        client.create_model_version(name, f"{run.artifact_uri}/model", run.run_id)
    return client


def active_runs(client: Any, service: str) -> list[Any]:
    experiment = client.get_experiment_by_name(audit.EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id], f"tags.`{audit.SERVICE_TAG}` = '{service}'"))


def test_the_champion_in_the_record_is_the_one_that_the_alias_names_then(mlflow_uri: str):
    client = make_model(mlflow_uri, "moved-on", 3)
    trial, decision = trial_of("moved-on")
    client.set_registered_model_alias("moved-on", "champion", "3")  # a person, after the decision
    audit.write(trial, decision, [], uri=mlflow_uri)
    (record,) = audit.chain("moved-on", uri=mlflow_uri)
    assert (record.body["champion_before"], record.body["champion_after"]) == ("1", "3")
    client.delete_registered_model("moved-on")
    audit.write(*trial_of("moved-on", 2), [], uri=mlflow_uri)
    records = audit.chain("moved-on", uri=mlflow_uri)
    assert records[1].body["champion_after"] is None
    assert audit.verify_chain(records) == []


def test_two_controllers_leave_one_record(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch):
    client = make_model(mlflow_uri, "contended", 2)
    trial, decision = trial_of("contended")
    start = audit._start
    others: list[str] = []

    def late(*args: Any) -> None:
        """The other controller writes all of it between this one's look and its own run."""
        monkeypatch.setattr(audit, "_start", start)
        others.append(audit.write(trial, decision, [], uri=mlflow_uri).run_id)
        start(*args)

    monkeypatch.setattr(audit, "_start", late)
    assert [audit.write(trial, decision, [], uri=mlflow_uri).run_id] == others
    assert [run.info.run_id for run in active_runs(client, "contended")] == others

    second, its_decision = trial_of("contended", 2)
    with ThreadPoolExecutor(3) as pool:
        writes = [pool.submit(audit.write, second, its_decision, [], uri=mlflow_uri) for _ in range(3)]
    for each in writes:
        if each.exception() is not None:
            assert isinstance(each.exception(), RetryableError)
    audit.write(second, its_decision, [], uri=mlflow_uri)
    assert len(active_runs(client, "contended")) == 2
    records = audit.chain("contended", uri=mlflow_uri)
    assert [record.sequence for record in records] == [1, 2]
    assert audit.verify_chain(records) == []


@pytest.mark.parametrize("name", [audit.EXPERIMENT, runs.EXPERIMENT])
def test_an_experiment_that_a_person_deleted_is_restored(mlflow_uri: str, name: str):
    client = make_model(mlflow_uri, f"after-{name}", 2)

    def in_audit() -> None:
        audit.write(*trial_of(f"after-{name}"), [], uri=mlflow_uri)

    def in_jobs() -> None:
        runs.open_run("job", attempt="a", params={}, tags={}, uri=mlflow_uri)

    write: Callable[[], None] = in_audit if name == audit.EXPERIMENT else in_jobs
    write()
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    write()
    assert client.get_experiment_by_name(name).lifecycle_stage == "active"


def test_a_version_that_was_deleted_is_told_apart_from_a_server_that_is_away(mlflow_uri: str):
    client = make_model(mlflow_uri, "gone", 2)
    client.set_registered_model_alias("gone", "champion", "1")
    client.delete_model_version("gone", "2")
    with pytest.raises(NotRegisteredError):
        aliases.move("gone", "champion", "2", expected="1", uri=mlflow_uri)
    assert aliases.read("gone", uri=mlflow_uri) == {"champion": "1"}
