"""Killing a process changes nothing but the time it takes: the same losses, in the same MLflow run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from job_processes import Cluster, Job, S3Server, Start, lora_recipe, until

from seatrial.registry import runs, versions
from seatrial.registry.client import connect

pytestmark = pytest.mark.slow
TOLERANCE = 1e-6
KEYS = ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss")


@pytest.fixture(scope="module")
def reference(
    start_job: Start, tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, dict[str, Any]]:
    """An uninterrupted job, with a gate that cannot be passed."""
    recipe = lora_recipe(tiny_base, data, tmp_path_factory.mktemp("reference"))
    job = start_job({**recipe, "gate": {**recipe["gate"], "max_loss": 0.001}})
    job.wait()
    return job, recipe


def curves(run_id: str, uri: str) -> dict[str, list[tuple[int, float]]]:
    return {key: runs.history(run_id, key, uri=uri) for key in KEYS}


def run_id_of(job: Job) -> str:
    return str(job.events("run")[0]["run_id"])


def assert_same(job: Job, reference: Job, uri: str) -> None:
    mine, theirs = curves(run_id_of(job), uri), curves(run_id_of(reference), uri)
    for key in KEYS:
        assert [step for step, _ in mine[key]] == [step for step, _ in theirs[key]], key
        for (step, value), (_, expected) in zip(mine[key], theirs[key], strict=True):
            assert value == pytest.approx(expected, abs=TOLERANCE), (key, step)


def step_reached(uri: str, job: Job, step: int) -> bool:
    assert job.process.poll() is None, "\n".join(job.lines())
    found = job.events("run")
    return bool(found) and runs.latest(found[0]["run_id"], uri=uri).get("train/loss", (0, 0.0))[0] >= step


def test_a_failed_gate_registers_nothing_and_a_looser_one_registers_without_training_again(
    reference: tuple[Job, dict[str, Any]], start_job: Start, mlflow_uri: str
) -> None:
    job, recipe = reference
    assert job.process.returncode == 3, "\n".join(job.lines())
    assert job.events("gate")[0]["passed"] is False
    assert "max_loss 0.001" in job.events("gate")[0]["reasons"][0]
    before = curves(run_id_of(job), mlflow_uri)
    assert [step for step, _ in before["train/loss"]] == list(range(1, 41))
    assert runs.tags_of(run_id_of(job), uri=mlflow_uri)["seatrial.gate"] == "failed"

    again = start_job(recipe)
    assert again.wait() == 0, "\n".join(again.lines())
    assert run_id_of(again) == run_id_of(job)
    assert curves(run_id_of(job), mlflow_uri) == before
    told = runs.tags_of(run_id_of(job), uri=mlflow_uri)
    assert told["seatrial.gate"] == "passed"
    assert not {"seatrial.gate_reasons", "seatrial.setting.gate.max_loss"} & told.keys()
    version = again.events("registered")[0]["version"]
    tags = versions.describe("join-words", version, uri=mlflow_uri).tags
    assert tags["seatrial.kind"] == "adapter"
    assert float(tags["seatrial.eval.loss"]) == pytest.approx(before["eval/loss"][-1][1], abs=1e-4)

    third = start_job(recipe)
    assert third.wait() == 0
    assert third.events("registered")[0]["version"] == version
    assert not third.events("run")


def test_a_killed_worker_leaves_the_losses_as_they_were(
    reference: tuple[Job, dict[str, Any]],
    start_job: Start,
    cluster: Cluster,
    mlflow_uri: str,
    tmp_path: Path,
) -> None:
    _, recipe = reference
    job = start_job({**recipe, "run": {**recipe["run"], "storage": str(tmp_path)}})
    until(lambda: step_reached(mlflow_uri, job, 10))
    os.kill(cluster.workers()[0].pid, signal.SIGKILL)
    assert job.wait() == 0, "\n".join(job.lines())
    assert job.events("resumed"), "\n".join(job.lines())
    assert_same(job, reference[0], mlflow_uri)


def test_a_killed_driver_continues_from_s3_when_it_is_run_again(
    reference: tuple[Job, dict[str, Any]], start_job: Start, cluster: Cluster, mlflow_uri: str, s3: S3Server
) -> None:
    _, recipe = reference
    values = {**recipe, "run": {**recipe["run"], "storage": s3.uri("jobs")}}
    first = start_job(values)
    until(lambda: step_reached(mlflow_uri, first, 12))
    first.kill()
    until(lambda: not cluster.workers(), timeout_s=60)

    second = start_job(values)
    assert second.wait() == 0, "\n".join(second.lines())
    assert run_id_of(second) == run_id_of(first)
    assert second.events("resumed")[0]["step"] >= 8
    assert_same(second, reference[0], mlflow_uri)


def test_sigterm_marks_the_run_as_killed(
    reference: tuple[Job, dict[str, Any]], start_job: Start, mlflow_uri: str, tmp_path: Path
) -> None:
    _, recipe = reference
    job = start_job({**recipe, "run": {**recipe["run"], "storage": str(tmp_path)}})
    until(lambda: job.events("plan"))
    job.process.terminate()
    assert job.wait(60) == 143, "\n".join(job.lines())
    assert connect(mlflow_uri).get_run(run_id_of(job)).info.status == "KILLED"
    assert "Traceback" not in "\n".join(job.lines())
