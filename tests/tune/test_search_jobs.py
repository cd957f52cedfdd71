"""Whole searches: MLflow runs, halving, copies between trials, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_processes import Cluster, Job, Start, until

from seatrial.registry import runs, versions
from seatrial.registry.client import connect
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.search.journal import Journal, Trial, folder_of
from seatrial_jobs.search.lineage import digests
from seatrial_jobs.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def search_recipe(
    base: Path, data: Path, storage: Path, search: dict[str, Any], **run: Any
) -> dict[str, Any]:
    """Steps of about a twentieth of a second, measured and kept every 10."""
    settings = {
        "seq_tokens": 128,
        "batch_rows": 8,
        "evaluate_every": 10,
        "checkpoint_every": 10,
        "storage": str(storage),
        "learning_rate": 0.01,
        **run,
    }
    return {
        "name": "join-search",
        "service": "join-words",
        "data": {"train": str(data / "pairs.jsonl")},
        "model": {"base": str(base)},
        "method": {"type": "lora", "rank": 4},
        "run": settings,
        "resources": {"workers": 1, "threads_per_worker": 1},
        "gate": {"sample_rows": 4, "max_new_tokens": 8},
        "search": search,
    }


def journal_in(place: Path) -> Journal:
    [folder] = [each for each in place.iterdir() if each.name.startswith("join-search-")]
    return Journal.read(Storage(str(folder)))


def parent_of(trial: Trial, uri: str) -> str:
    return runs.tags_of(trial.run_id, uri=uri)["mlflow.parentRunId"]


def said(job: Job) -> str:
    return "\n".join(job.lines())


def test_a_search_that_is_killed_twice_stops_the_weak_and_makes_the_best_a_version_with_its_lineage(
    start_job: Start, cluster: Cluster, tiny_base: Path, data: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    search = {
        "space": {"run.learning_rate": {"type": "choice", "values": [1e-2, 1e-6]}},
        "algorithm": {"type": "grid"},
        "scheduler": {"type": "asha", "grace_steps": 80, "reduction": 2},
        "max_concurrent": 1,
    }
    recipe = search_recipe(tiny_base, data, tmp_path, search, steps=100)
    first = start_job(recipe, module="tune")
    until(lambda: _has_come_to(20, 1, tmp_path, first), timeout_s=400, every_s=0.1)
    [actor] = _trial_actors(cluster)
    actor.kill()
    until(lambda: _has_come_to(10, 2, tmp_path, first), timeout_s=400)
    assert "trial 1/2  lost with its process or its machine after step" in said(first)
    before = journal_in(tmp_path).trials
    assert before[1].state == "finished", said(first)
    first.kill()
    until(lambda: not cluster.workers(), timeout_s=60)

    second = start_job(recipe, module="tune")
    assert second.wait() == 0, said(second)
    assert "Traceback" not in said(second)
    trials = journal_in(tmp_path).trials
    assert trials[1] == before[1], "what has ended is not run again"
    assert [t.run_id for t in trials.values()] == [t.run_id for t in before.values()]
    # The rung remembers the first trial, whose measurement there was made before the kill.
    assert {number: trial.state for number, trial in trials.items()} == {
        1: "finished", 2: "stopped",
    }, said(second)  # fmt: skip
    assert trials[2].step < 100
    run_id = second.events("run")[0]["run_id"]
    assert run_id == first.events("run")[0]["run_id"]
    for number, reached in ((1, 20), (2, 10)):
        assert int(runs.tags_of(trials[number].run_id, uri=mlflow_uri)["seatrial.resumed_at"]) >= reached
    for trial in trials.values():
        assert parent_of(trial, mlflow_uri) == run_id
        found = connect(mlflow_uri).get_run(trial.run_id)
        assert float(found.data.params["run.learning_rate"]) == trial.values["run.learning_rate"]
        assert found.info.status == "FINISHED"
        measured = dict(runs.history(trial.run_id, "eval/loss", uri=mlflow_uri))
        assert measured[10] == pytest.approx(trial.reports[0].value, abs=1e-6)
        steps = [step for step, _ in runs.history(trial.run_id, "train/loss", uri=mlflow_uri)]
        assert steps == list(range(1, len(steps) + 1)), "each step once"
    children = connect(mlflow_uri).search_runs(
        [connect(mlflow_uri).get_run(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    assert len(children) == 2

    version = second.events("registered")[0]["version"]
    tags = versions.describe("join-words", version, uri=mlflow_uri).tags
    assert tags["seatrial.search.parent_run"] == run_id
    assert tags["seatrial.search.trial"] == "1"
    assert tags["seatrial.search.trials"] == "2"
    assert float(tags["seatrial.search.value.run.learning_rate"]) == 1e-2
    kept = {each.path for each in connect(mlflow_uri).list_artifacts(run_id)}
    assert kept >= {"trials.json", "trials.png", "journal.json"}
    assert any(line.startswith("trial  state") for line in second.lines())

    third = start_job(recipe, module="tune")
    assert third.wait() == 0
    assert not third.events("run")
    assert third.events("registered")[0]["version"] == version


def test_a_weak_trial_goes_on_from_the_checkpoint_of_a_strong_one(
    start_job: Start, tiny_base: Path, data: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    search = {
        "space": {"run.learning_rate": {"type": "choice", "values": [1e-2, 1e-6]}},
        "algorithm": {"type": "grid"},
        "scheduler": {"type": "pbt", "interval_steps": 20, "quantile": 0.5, "resample": 0.0},
    }
    recipe = search_recipe(tiny_base, data, tmp_path, search, steps=60, seq_tokens=256, keep_checkpoints=10)
    job = start_job(recipe, module="tune")
    assert job.wait() == 0, said(job)
    journal = journal_in(tmp_path)
    weak = journal.trials[2]
    assert weak.generation >= 2, said(job)
    assert job.events("exploited")[0]["donor"] == 1

    origin = weak.generations[1].origin
    assert origin is not None
    assert origin.trial == 1
    compared = [report for report in weak.reports if report.generation == 1][-1]
    assert origin.step <= compared.step, "compared at equal steps, however far the donor was by then"
    note = json.loads(runs.tags_of(weak.run_id, uri=mlflow_uri)["seatrial.generation.2"])
    assert (note["from_trial"], note["checkpoint"]) == (1, origin.checkpoint)
    donor = journal.storage.below(folder_of(1, origin.generation))
    assert note["sha256"] == digests(donor, origin.checkpoint), "weights and optimizer are the donor's"
    mine = {k.name for k in checkpoint.complete(journal.storage.below(folder_of(2, 2)))}
    assert origin.checkpoint in mine, "the copy keeps the donor's name"
    # It learnt from there: the trial that could not learn ends near the one that could.
    assert weak.state == "finished"
    assert weak.reports[-1].value < weak.reports[0].value - 0.2
    assert runs.tags_of(weak.run_id, uri=mlflow_uri)["seatrial.resumed_at"]


def _has_come_to(step: int, number: int, place: Path, job: Job) -> bool:
    assert job.process.poll() is None, said(job)
    folders = [each for each in place.iterdir() if (each / "trials.json").is_file()]
    trials = journal_in(place).trials if folders else {}
    return number in trials and trials[number].step >= step


def _trial_actors(cluster: Cluster) -> list[psutil.Process]:
    """The actors of trials: Ray names the process of one after the class in which Tune wraps a function."""
    return [p for p in cluster.processes() if "ray::ImplicitFunc" in _command(p)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
