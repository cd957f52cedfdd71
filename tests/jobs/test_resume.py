"""A job that is run again goes on where it was, in the same MLflow run; `test_kills.py` kills its workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_processes import CURVES, Cluster, Job, S3Server, Start, Uninterrupted, curves, launch, until

from seatrial.registry import runs, versions
from seatrial.registry.client import connect

pytestmark = pytest.mark.slow
TOLERANCE = 1e-6
TOLD = (str(Path(__file__).parent / "told_train.py"),)


def run_id_of(job: Job) -> str:
    return str(job.events("run")[0]["run_id"])


def assert_same(job: Job, reference: Job, uri: str) -> None:
    mine, theirs = curves(run_id_of(job), uri), curves(run_id_of(reference), uri)
    for key in CURVES:
        assert [step for step, _ in mine[key]] == [step for step, _ in theirs[key]], key
        for (step, value), (_, expected) in zip(mine[key], theirs[key], strict=True):
            assert value == pytest.approx(expected, abs=TOLERANCE), (key, step)


def steps_done(told: Path, job: Job) -> int:
    """The most steps that a worker has written down, which MLflow hears of later."""
    assert job.process.poll() is None, "\n".join(job.lines())
    return max((int(file.read_text().partition(" ")[2] or 0) for file in told.iterdir()), default=0)


def test_a_failed_gate_registers_nothing_and_a_looser_one_registers_without_training_again(
    uninterrupted: Uninterrupted, start_job: Start, mlflow_uri: str
) -> None:
    job, again = uninterrupted.refused, uninterrupted.registered
    assert job.events("gate")[0]["passed"] is False
    assert "max_loss 0.001" in job.events("gate")[0]["reasons"][0]
    assert not job.events("registered")
    assert [step for step, _ in uninterrupted.curves["train/loss"]] == list(range(1, 41))
    assert uninterrupted.gate == "failed"

    assert run_id_of(again) == run_id_of(job)
    now = curves(run_id_of(again), mlflow_uri)
    assert now == uninterrupted.curves
    told = runs.tags_of(run_id_of(job), uri=mlflow_uri)
    assert told["seatrial.gate"] == "passed"
    assert not {"seatrial.gate_reasons", "seatrial.setting.gate.max_loss"} & told.keys()
    version = again.events("registered")[0]["version"]
    tags = versions.describe("join-words", version, uri=mlflow_uri).tags
    assert tags["seatrial.kind"] == "adapter"
    assert float(tags["seatrial.eval.loss"]) == pytest.approx(now["eval/loss"][-1][1], abs=1e-4)

    third = start_job(uninterrupted.recipe)
    assert third.wait() == 0
    assert third.events("registered")[0]["version"] == version
    assert not third.events("run")


@pytest.mark.soak
def test_a_killed_driver_continues_from_s3_when_it_is_run_again(
    uninterrupted: Uninterrupted,
    start_job: Start,
    cluster: Cluster,
    mlflow_uri: str,
    s3: S3Server,
    tmp_path: Path,
) -> None:
    recipe = uninterrupted.recipe
    values = {**recipe, "run": {**recipe["run"], "storage": s3.uri("jobs")}}
    (told := tmp_path / "steps").mkdir()
    first = launch(cluster, values, tmp_path, TOLD, str(told))
    until(lambda: steps_done(told, first) >= 12, every_s=0.01)
    first.kill()
    until(lambda: not cluster.workers(), timeout_s=60)

    second = start_job(values)
    assert second.wait() == 0, "\n".join(second.lines())
    assert run_id_of(second) == run_id_of(first)
    assert second.events("resumed")[0]["step"] >= 5
    assert_same(second, uninterrupted.registered, mlflow_uri)


def test_sigterm_marks_the_run_as_killed(
    uninterrupted: Uninterrupted, start_job: Start, mlflow_uri: str, tmp_path: Path
) -> None:
    recipe = uninterrupted.recipe
    job = start_job({**recipe, "run": {**recipe["run"], "storage": str(tmp_path)}})
    until(lambda: job.events("plan"))
    job.process.terminate()
    assert job.wait(60) == 143, "\n".join(job.lines())
    assert connect(mlflow_uri).get_run(run_id_of(job)).info.status == "KILLED"
    assert "Traceback" not in "\n".join(job.lines())
