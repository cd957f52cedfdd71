"""What the driver does around training: how it ends when something is wrong, and what the run says then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from seatrial.config.jobs import JobsConfig
from seatrial.config.recipe import TrainRecipe
from seatrial.errors import RetryableError
from seatrial.registry import runs
from seatrial.registry.client import connect
from seatrial.registry.manifest import write_manifest
from seatrial.submission import accounting
from seatrial_jobs import job, ledger

SCORES = {"loss": 1.25, "exact_match": 0.25, "rouge_l": 0.5}
Attempt = Callable[..., tuple[int, str]]


@pytest.fixture
def values(data: Path, tiny_base: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    name = request.node.name.split("[")[0].replace("_", "-")[:60].strip("-")
    return {
        "name": name,
        "service": name,
        "data": {"train": str(data / "pairs.jsonl")},
        "model": {"base": str(tiny_base)},
        "method": {"type": "lora", "rank": 4},
        "run": {"steps": 5, "seq_tokens": 64, "storage": "jobs"},
    }


@pytest.fixture
def attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """Run a job's driver in this process; its exit code and all that it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(job, "on_termination", lambda: None)  # the test runner keeps its own handlers

    def run(values: dict[str, Any], *arguments: str, **changes: Any) -> tuple[int, str]:
        Path("recipe.yaml").write_text(yaml.safe_dump({**values, **changes}))
        code = job.main(TrainRecipe, "seatrial_jobs.train", ["recipe.yaml", *arguments])
        written = capsys.readouterr()
        return code, written.out + written.err

    return run


@pytest.fixture
def mlflow(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, attempt: Attempt) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    return connect(mlflow_uri)


def train_gives(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    """Skip the workers: they return ``outcome``, or the driver fails with it."""

    def train(_: job.Job) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(job, "train", train)


def outcome(folder: Path, **changes: Any) -> dict[str, Any]:
    if not folder.exists():
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"a" * 100)
    manifest = write_manifest(folder, kind="adapter", method="lora").model_dump_json()
    found = {"failed": None, "user_error": None, "scores": SCORES, "reasons": [], "samples": []}
    return {**found, "manifest": manifest, **changes}


def only_run(mlflow: Any, name: str) -> Any:
    experiment = mlflow.get_experiment_by_name(runs.EXPERIMENT)
    (found,) = mlflow.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return found


def test_a_secret_in_the_address_of_the_storage_is_written_nowhere(attempt: Attempt, values: dict[str, Any]):
    storage = "s3://KEY:TOP/SECRET@bucket/x?region=us-east-1"
    code, written = attempt(values, run={**values["run"], "storage": storage})
    assert code == 2
    assert "run.storage: s3://bucket/x" in written
    assert "SECRET" not in written
    assert "TOP" not in written


@pytest.fixture
def told(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Tags that the job gives its run, of a driver that has no MLflow."""
    found: dict[str, str] = {}

    def open_run(*_: Any, tags: dict[str, str], **__: Any) -> runs.Run:
        found.update(tags)
        return runs.Run("a-run", "http://mlflow")

    def finish(*_: Any, tags: dict[str, str] | None = None, **__: Any) -> None:
        found.update(tags or {})

    monkeypatch.setattr(job, "_require_mlflow", lambda: "http://mlflow")
    monkeypatch.setattr(runs, "open_run", open_run)
    monkeypatch.setattr(runs, "finish", finish)
    monkeypatch.setattr(job.Usage, "write", lambda *_: None)
    return found


def test_a_password_in_a_cause_is_written_nowhere(
    attempt: Attempt, values: dict[str, Any], told: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    said = "MLflow at http://me:SECRET@mlflow:5000 did not take the measurements"
    train_gives(monkeypatch, job.JobFailedError(said))
    code, written = attempt(values)
    assert code == 1
    assert told[runs.CAUSE] == "MLflow at [hidden]mlflow:5000 did not take the measurements"
    assert "SECRET" not in written


def test_a_job_says_when_other_training_code_took_part(
    attempt: Attempt,
    values: dict[str, Any],
    told: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    old, new = "0" * 64, "1" * 64
    monkeypatch.setattr(ledger, "code_digest", lambda: old)
    train_gives(monkeypatch, job.JobFailedError("killed at step 3"))
    assert "warning" not in attempt(values)[1]
    (record,) = tmp_path.glob(f"jobs/*/{ledger.RECORD}")
    (record.parent / "checkpoint-00000003-abc").mkdir()
    assert "warning" not in attempt(values)[1]
    assert "seatrial.code_digests" not in told

    monkeypatch.setattr(ledger, "code_digest", lambda: new)
    assert "warning: goes on from what other training code made (000000000000): --force" in attempt(values)[1]
    assert told["seatrial.code_digests"] == f"{old}, {new}"

    kept = json.loads(record.read_text())
    for digests, expected in (
        ([new], "it is version 3 of {} (--force runs it again)"),
        ([old], "it is version 3 of {}, made by other training code (000000000000): --force trains it again"),
        (None, "it is version 3 of {}, made by other training code (unknown): --force trains it again"),
    ):
        before = {key: value for key, value in kept.items() if key != "code_digests"}
        record.write_text(
            json.dumps({**before, "version": "3", **({"code_digests": digests} if digests else {})})
        )
        code, written = attempt(values)
        assert code == 0
        assert expected.format(values["service"]) in written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "code"),
    [
        ("recipe.yaml/below", 2),
        ("/proc/seatrial", 2),
        ("s3://b/x?endpoint_override=127.0.0.1:9&scheme=http&region=r", 75),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, storage: str, code: int
):
    found, written = attempt(values, run={**values["run"], "storage": storage})
    assert found == code
    assert written.startswith("run.storage: ")
    assert len(written.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_bug_in_the_driver_leaves_no_run_that_seems_to_go_on(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, monkeypatch: pytest.MonkeyPatch
):
    train_gives(monkeypatch, ZeroDivisionError("by nothing"))
    with pytest.raises(ZeroDivisionError):
        attempt(values)
    run = only_run(mlflow, values["name"])
    assert run.info.status == "FAILED"
    assert run.data.tags[runs.CAUSE] == "ZeroDivisionError: by nothing"


@pytest.mark.slow
def test_a_job_that_is_stopped_while_mlflow_is_away_ends_as_one_that_was_stopped(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, monkeypatch: pytest.MonkeyPatch
):
    def away(*_: Any, **__: Any) -> None:
        raise RetryableError("MLFLOW_TRACKING_URI: does not answer")

    monkeypatch.setattr(runs, "finish", away)
    train_gives(monkeypatch, job.Terminated())
    code, written = attempt(values)
    assert code == job.TERMINATED
    assert written.splitlines()[-1] == "stopped; run the same command again to continue"
    assert "the run keeps its status: MLFLOW_TRACKING_URI: does not answer" in written


@pytest.mark.slow
def test_what_a_worker_says_of_the_recipe_is_a_user_error(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    train_gives(monkeypatch, outcome(tmp_path / "version", user_error="method.targets: x: no such layers"))
    code, written = attempt(values)
    assert code == 2
    assert written.splitlines()[-1] == "method.targets: x: no such layers"
    assert only_run(mlflow, values["name"]).info.status == "FAILED"


@pytest.mark.slow
def test_a_damaged_record_is_one_line_and_force_starts_again(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    train_gives(monkeypatch, outcome(tmp_path / "version", failed="stopped early"))
    assert attempt(values)[0] == 1
    (record,) = tmp_path.glob(f"jobs/*/{ledger.RECORD}")
    record.write_text("{half")
    code, written = attempt(values)
    assert code == 2
    assert "--force" in written
    assert len(written.strip().splitlines()) == 1
    train_gives(monkeypatch, outcome(tmp_path / "version"))
    assert attempt(values, "--force")[0] == 0


@pytest.mark.slow
def test_a_job_that_runs_again_has_one_run_that_tells_of_the_last_time(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    train_gives(monkeypatch, RuntimeError("the first time"))
    with pytest.raises(RuntimeError):
        attempt(values)
    train_gives(monkeypatch, outcome(tmp_path / "version", reasons=["loss 1.25 is above max_loss 0.5"]))
    assert attempt(values, gate={"max_loss": 0.5, "sample_rows": 10})[0] == 3
    run = only_run(mlflow, values["name"])
    assert runs.CAUSE not in run.data.tags
    assert run.data.tags["seatrial.setting.gate.max_loss"] == "0.5"
    assert run.data.tags[runs.GATE] == "failed"
    assert not [key for key in run.data.params if key.startswith(("gate", "resources"))]
    assert run.data.params["run.steps"] == "5"

    train_gives(monkeypatch, outcome(tmp_path / "version", scores={**SCORES, "exact_match": 0.75}))
    changed = {**values["run"], "max_failures": 7}
    assert attempt(values, gate={"sample_rows": 20}, run=changed, resources={"workers": 2})[0] == 0
    again = only_run(mlflow, values["name"])
    assert again.info.run_id == run.info.run_id
    tags = again.data.tags
    assert (tags[runs.GATE], runs.GATE_REASONS in tags) == ("passed", False)
    assert "seatrial.setting.gate.max_loss" not in tags
    assert tags["seatrial.setting.gate.sample_rows"] == "20"
    assert tags["seatrial.setting.run.max_failures"] == "7"
    assert tags["seatrial.setting.resources.workers"] == "2"
    assert again.data.metrics["eval/exact_match"] == 0.75
    history = [(step, value) for step, value in runs.history(run.info.run_id, "eval/exact_match")]
    assert history == [(5, 0.25), (5, 0.75)]
    assert len(runs.history(run.info.run_id, "eval/loss")) == 1, "what is recorded is not sent again"


@pytest.mark.slow
def test_without_a_queue_a_job_notes_itself_what_all_its_drivers_used(
    attempt: Attempt,
    values: dict[str, Any],
    mlflow: Any,
    mlflow_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    ended = [RuntimeError("the first time"), outcome(tmp_path / "version")]

    def train(given: job.Job) -> Any:
        given.usage.gpus, given.usage.began = 4.0, given.usage.began - 1800
        found = ended.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(job, "train", train)
    (tmp_path / "jobs.yaml").write_text("gpu_hour_price: 2.5\ncurrency: USD\n")
    monkeypatch.setenv("SEATRIAL_JOBS_FILE", str(tmp_path / "jobs.yaml"))
    with pytest.raises(RuntimeError):
        attempt(values)
    tags = only_run(mlflow, values["name"]).data.tags
    assert float(tags[accounting.GPU_HOURS]) == pytest.approx(2.0, abs=0.1)
    assert attempt(values)[0] == 0
    tags = only_run(mlflow, values["name"]).data.tags
    hours = float(tags[accounting.GPU_HOURS])
    assert hours == pytest.approx(4.0, abs=0.2)
    cost, currency = tags[accounting.COST].split()
    assert (float(cost), currency) == (pytest.approx(hours * 2.5, abs=0.02), "USD")
    run = only_run(mlflow, values["name"])
    for _ in range(2):  # the queue has worked in the same run for 3 hours, and may say so twice
        accounting.write(run.info.run_id, 3.0, JobsConfig(), uri=mlflow_uri)
    tags = only_run(mlflow, values["name"]).data.tags
    assert float(tags[accounting.GPU_HOURS]) == pytest.approx(hours + 3.0, abs=1e-6)


@pytest.mark.slow
def test_a_job_of_the_queue_leaves_its_hours_to_the_queue(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    metadata = {"job_submission_id": "x-1", "seatrial.team": "support"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": metadata}))
    train_gives(monkeypatch, outcome(tmp_path / "version"))
    assert attempt(values)[0] == 0
    tags = only_run(mlflow, values["name"]).data.tags
    assert tags[runs.SUBMISSION_ID] == "x-1"
    assert accounting.GPU_HOURS not in tags


@pytest.mark.slow
def test_a_run_that_somebody_goes_on_with_by_hand_is_the_queues_no_more(
    attempt: Attempt, values: dict[str, Any], mlflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    metadata = {"job_submission_id": "x-1"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": metadata}))
    train_gives(monkeypatch, RuntimeError("lost"))
    with pytest.raises(RuntimeError):
        attempt(values)
    assert only_run(mlflow, values["name"]).data.tags[runs.SUBMISSION_ID] == "x-1"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    train_gives(monkeypatch, outcome(tmp_path / "version"))
    assert attempt(values)[0] == 0
    assert only_run(mlflow, values["name"]).data.tags[runs.SUBMISSION_ID] == "none"
