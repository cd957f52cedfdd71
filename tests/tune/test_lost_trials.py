"""Trials whose process goes away are started again; those that cannot end are not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.tune
from ray.exceptions import ActorDiedError
from ray.tune.schedulers import TrialScheduler

from seatrial.config.tune import TuneRecipe
from seatrial.errors import UserError
from seatrial.registry import runs
from seatrial_jobs.search import tell, trial
from seatrial_jobs.search.drive import run_config
from seatrial_jobs.search.journal import Journal, Trial
from seatrial_jobs.search.observer import Observer
from seatrial_jobs.search.schedulers import Halving
from seatrial_jobs.spec import Spec
from seatrial_jobs.storage import Storage
from tests.tune.trials import measured, search, supplied


def recipe(**run: Any) -> TuneRecipe:
    rates = {"run.learning_rate": {"type": "log_uniform", "low": 1e-4, "high": 1e-2}}
    return TuneRecipe.model_validate(
        {
            "name": "join-search",
            "service": "join-words",
            "data": {"train": "pairs.jsonl"},
            "model": {"base": "tiny"},
            "method": {"type": "lora", "rank": 4},
            "run": {"steps": 40, "seq_tokens": 64, "batch_rows": 8, **run},
            "search": {"space": rates},
        }
    )


class Watched:
    """An observer whose journal has ``trials``; what it told MLflow of their ends is in ``ends``."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, *trials: Trial) -> None:
        self.journal = Journal(Storage(str(place)), {each.number: each for each in trials})
        self.ends: list[tuple[str, str, dict[str, str]]] = []
        teller = tell.Teller(self.journal, search(), 40)
        uri = "http://127.0.0.1:9"
        self.observer = Observer(self.journal, teller, uri, lambda: None, lambda: None, [])

        def finish(run_id: str, status: str, *, tags: dict[str, str], uri: str) -> None:
            self.ends.append((run_id, status, tags))

        monkeypatch.setattr(runs, "finish", finish)


def test_a_trial_is_started_again_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    config = run_config("join-search", recipe(max_failures=2), str(tmp_path), None)
    assert config.failure_config.max_failures == 2
    journal = Journal(Storage(str(tmp_path)), {1: measured(1, 3.0)})
    found = supplied(journal, tmp_path, config.failure_config.max_failures)
    assert found.max_failures == 2


def test_a_trial_that_cannot_end_reports_its_cause_and_one_that_was_lost_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.tune, "report", reports.append)
    shared: Any = None

    def run_into(error: Exception) -> None:
        def fail(config: dict[str, Any], shared: trial.Shared) -> None:
            raise error

        monkeypatch.setattr(trial, "_train", fail)
        trial.run({}, shared)

    run_into(trial.TrialFailedError("the loss is nan"))
    run_into(ValueError("no such thing"))
    assert [each["failed"] for each in reports] == ["the loss is nan", "ValueError: no such thing"]
    with pytest.raises(trial.TrialLostError):
        run_into(trial.TrialLostError("gone"))
    assert len(reports) == 2


def test_training_whose_controller_is_gone_was_lost_and_any_other_error_is_the_trials_own() -> None:
    def result(error: Exception) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            raise error

        training = trial.Training(call)
        assert training.ended.wait(10)
        return training.result()

    with pytest.raises(trial.TrialLostError):
        result(ActorDiedError())
    with pytest.raises(trial.TrialFailedError, match="out of memory"):
        result(RuntimeError("out of memory"))
    assert trial.Training(lambda: {"scores": {}}).ended.wait(10)


def test_the_last_report_of_a_trial_that_cannot_end_stops_it_and_counts_on_no_rung(tmp_path: Path) -> None:
    journal = Journal(Storage(str(tmp_path)), {1: measured(1)})
    found = supplied(journal, tmp_path, max_failures=3)
    report = trial.failure(trial.TrialFailedError("the loss is nan"))
    assert found.should_stop(report), "without asking the scheduler"
    found.update_last_result(report)
    halving = Halving(search(scheduler={"type": "asha", "grace_steps": 10, "reduction": 2}), journal)
    halving.set_search_properties("value", "min")
    halving.on_trial_add(None, found)
    assert halving.on_trial_result(None, found, report) == TrialScheduler.CONTINUE
    halving.on_trial_complete(None, found, report)
    assert not any(recorded for _, recorded in halving._brackets[0]._rungs)


def test_a_trial_that_reports_why_it_cannot_end_has_failed_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, monkeypatch, measured(1, 3.0), measured(2))
    report = trial.failure(trial.TrialFailedError("eval/loss is nan, which is no measurement"))
    told: Any = SimpleNamespace(config={"trial": 1}, last_result=report)
    watched.observer.on_trial_result(0, [], told, report)
    assert watched.journal.trials[1] == measured(1, 3.0), "it is no measurement"
    watched.observer.on_trial_complete(0, [], told)
    cause = "eval/loss is nan, which is no measurement"
    assert watched.journal.trials[1] == replace(measured(1, 3.0), state="failed", cause=cause)
    assert watched.journal.trials[2].state == "running"
    assert [(run_id, status) for run_id, status, _ in watched.ends] == [("run1", "FAILED")]
    assert watched.ends[0][2][runs.CAUSE] == cause


def test_a_trial_that_is_started_again_stays_a_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(tmp_path, monkeypatch, measured(1, 3.0))
    told: Any = SimpleNamespace(config={"trial": 1}, get_error=lambda: "The actor died.\nIts node is gone.\n")
    watched.observer.on_trial_recover(0, [], told)
    assert watched.journal.trials[1] == measured(1, 3.0)
    assert not watched.ends
    assert "lost with its process or its machine after step 10" in capsys.readouterr().out
    watched.observer.on_trial_error(0, [], told)
    failed = watched.journal.trials[1]
    assert (failed.state, failed.cause) == ("failed", "Its node is gone.")


def test_an_end_that_could_not_be_noted_is_no_loss_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, monkeypatch, measured(1, 4.0, 3.0, 2.0, 1.0))

    def away(*_: Any, **__: Any) -> None:
        raise UserError("MLflow: it is away")

    monkeypatch.setattr(runs, "finish", away)
    told: Any = SimpleNamespace(config={"trial": 1}, last_result={"step": 40, "value": 1.0})
    with pytest.raises(UserError):
        watched.observer.on_trial_complete(0, [], told)
    with pytest.raises(UserError, match="it is away"):  # Tune would start the trial again
        watched.observer.on_trial_recover(0, [], told)
    with pytest.raises(UserError, match="it is away"):  # or take it for one that was lost too often
        watched.observer.on_trial_error(0, [], told)
    assert watched.observer._journal.trials[1].state == "finished"


def test_each_start_of_a_trial_owns_its_storage_alone(tmp_path: Path) -> None:
    template = Spec(
        *(recipe(), 40, None, [], None, None, None, Storage(str(tmp_path)), "search", "run0"),
        mlflow_uri="",
        data_digest="",
        code_digest="",
    )
    shared = trial.Shared(recipe(), template, Storage(str(tmp_path)))
    config = {
        "trial": 1,
        "steps": 40,
        "run_id": "run1",
        "driver": "search",
        "generation": 1,
        "values": {"run.learning_rate": 1e-3},
        "origin": None,
    }
    (first, name), (again, same) = (trial.specify(config, shared) for _ in range(2))
    assert name == same == "trial-001-1"
    assert replace(first, driver="") == replace(again, driver="")
    assert first.driver != again.driver
    assert math.isclose(first.recipe.run.learning_rate, 1e-3)
