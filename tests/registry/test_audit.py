"""Audit records against a real MLflow server: one for each, whoever writes and whatever is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from seatrial.config.trial import TrialSection
from seatrial.errors import RetryableError
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.record import ChampionMove
from seatrial.experiments.trial import Decision, Trial
from seatrial.experiments.verdict import TrialPolicy, judge
from seatrial.registry import aliases, audit, runs
from seatrial.registry.client import NotRegisteredError, connect
from seatrial.store.tables import anchors
from tests.registry.recorded import Archive, judged

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


def archive(uri: str, folder: Path, service: str, trials: int = 2) -> Archive:
    found = Archive(service, uri, folder)
    for number in range(1, trials + 1):
        found.end(number)
    return found


def test_trials_and_moves_by_hand_are_one_chain(mlflow_uri: str, tmp_path: Path):
    kept = archive(mlflow_uri, tmp_path, "one-chain", 1)
    key = kept.move("2", "1")
    kept.end(2)
    assert kept.problems() == []
    trial, move, later = kept.records
    assert [each.sequence for each in (trial, move, later)] == [1, 2, 3]
    assert move.key == key == "one-chain--move-2"
    said = {"verdict": "alias", "champion_before": "2", "champion_after": "1"}
    assert said.items() <= move.body.items()
    assert move.body["actor"] == "a person, through the registry"
    assert (trial.body["format"], trial.body["cause"]) == (2, "judgement")
    assert trial.body["challengers"] == {"challenger": "2"}
    anchors = kept.store.anchors("one-chain")
    assert [(each.key, each.hash) for each in anchors] == [(each.key, each.hash) for each in kept.records]
    assert kept.store.last_anchor("one-chain").sequence == 3


def test_a_move_is_recorded_once_and_as_it_was_begun(mlflow_uri: str, tmp_path: Path, monkeypatch):
    """The writer dies before the record is whole; a person moves the alias again before the next attempt."""
    kept = Archive("once", mlflow_uri, tmp_path)
    first = ChampionMove("once--move-1", "once", "1", "2", "who")
    fill = audit._fill

    def die(*_: Any) -> Any:
        monkeypatch.setattr(audit, "_fill", fill)
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "_fill", die)
    with pytest.raises(KeyboardInterrupt):
        audit.write_move(first, uri=mlflow_uri)
    later = dataclasses.replace(first, after="3")
    written = audit.write_move(later, uri=mlflow_uri)
    assert (written.body["champion_before"], written.body["champion_after"]) == ("1", "2")
    assert audit.write_move(later, uri=mlflow_uri) == written
    assert written.anchor("once").champion == "2"
    assert kept.records == [written]


def test_the_newest_record_taken_away_is_missed(mlflow_uri: str, tmp_path: Path):
    kept = archive(mlflow_uri, tmp_path, "truncated")
    newest = kept.records[-1]
    kept.client.delete_run(newest.run_id)
    assert audit.verify_chain(kept.records) == []  # what is still there is whole
    (problem,) = kept.problems()
    assert problem.startswith("truncated-2: has no record: its run")
    assert f"mlflow runs restore --run-id {newest.run_id}" in problem
    kept.client.restore_run(newest.run_id)
    assert kept.problems() == []


def test_a_record_whose_hash_tag_was_removed_is_missed(mlflow_uri: str, tmp_path: Path):
    kept = archive(mlflow_uri, tmp_path, "untagged")
    kept.client.delete_tag(kept.records[-1].run_id, audit.HASH_TAG)
    (problem,) = kept.problems()
    assert problem.startswith("untagged-2: has no record")
    assert f"has no tag {audit.HASH_TAG}" in problem


def test_a_chain_that_was_rewritten_to_fit_is_found(mlflow_uri: str, tmp_path: Path):
    kept = archive(mlflow_uri, tmp_path, "rewritten", 3)
    kept.rewrite(2, verdict="roll_back")
    assert audit.verify_chain(kept.records) == []
    problems = kept.problems()
    assert [each.split(":")[0] for each in problems] == ["rewritten-2", "rewritten-3"]
    assert all("was rewritten" in each for each in problems)


def test_a_record_that_no_decision_made_is_found(mlflow_uri: str, tmp_path: Path):
    kept = archive(mlflow_uri, tmp_path, "invented", 1)
    audit.write(*judged("invented", 7), [], uri=mlflow_uri)
    (problem,) = kept.problems()
    assert problem.startswith("invented-7: the store knows nothing of this record")


@pytest.mark.parametrize("text", ["{", "[1]", '{"verdict": NaN}'])
def test_a_file_that_is_no_record_any_more_is_told(mlflow_uri: str, tmp_path: Path, text: str):
    kept = archive(mlflow_uri, tmp_path, f"garbled-{len(text)}", 1)
    kept.client.log_text(kept.records[0].run_id, text, audit.RECORD)
    (problem,) = kept.problems()
    assert "cannot be read" in problem


def test_tags_that_were_swapped_are_found(mlflow_uri: str, tmp_path: Path):
    kept = archive(mlflow_uri, tmp_path, "swapped", 1)
    run_id = kept.records[0].run_id
    kept.client.set_tag(run_id, audit.TRIAL_TAG, "swapped-9")
    problems = kept.problems()
    assert any("tags were changed: the record is number 1 of swapped-1" in each for each in problems)
    kept.client.set_tag(run_id, audit.SEQUENCE_TAG, "first")
    assert any("is number 0, expected 1" in each for each in kept.problems())


def test_records_from_before_the_store_kept_hashes_hold_by_themselves(mlflow_uri: str, tmp_path: Path):
    kept = archive(mlflow_uri, tmp_path, "older", 2)
    with kept.store.engine.begin() as connection:
        connection.execute(anchors.delete())
    assert kept.problems() == []
    kept.end(3)
    assert kept.problems() == []
    with kept.store.engine.begin() as connection:
        connection.execute(anchors.delete())
    kept.client.delete_run(kept.records[-1].run_id)
    (problem,) = kept.problems()
    assert problem.startswith("older-3: has no record")
