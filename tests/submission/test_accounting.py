"""How the queue ends the MLflow runs of drivers that could not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from simulated import World, job

from seatrial.errors import RetryableError
from seatrial.registry import runs
from seatrial.store.job import Cause
from seatrial.submission import accounting
from seatrial.submission.rayjobs import Log, RayJob

JOBS = runs.EXPERIMENT
KILLED = Cause("killed", "its driver was killed", "retry")
FAILED = replace(job("a", state="failed", attempt=1), cause=KILLED)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    where = tmp_path_factory.mktemp("mlflow")
    made = MlflowClient(tracking_uri=f"sqlite:///{where / 'mlflow.db'}")
    made.create_experiment(JOBS, artifact_location=str(where / "files"))
    return made


@pytest.fixture
def mlflow(database: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """MLflow without its server, and without runs."""
    for module in (runs, accounting):
        monkeypatch.setattr(module, "connect", lambda _: database)
    runs._connected.cache_clear()
    yield database
    runs._connected.cache_clear()
    for run in database.search_runs([_experiment(database)]):
        database.delete_run(run.info.run_id)


def _experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name(JOBS)
    assert found is not None
    return str(found.experiment_id)


def opened(client: MlflowClient, **tags: str) -> str:
    names = {"submission": runs.SUBMISSION_ID, "parent": "mlflow.parentRunId"}
    made = client.create_run(_experiment(client), tags={names[key]: value for key, value in tags.items()})
    return str(made.info.run_id)


def told(client: MlflowClient, run_id: str) -> tuple[str, str | None]:
    run = client.get_run(run_id)
    return run.info.status, run.data.tags.get(runs.CAUSE)


def test_a_run_that_its_driver_left_open_is_ended_with_its_children_once(mlflow: MlflowClient) -> None:
    parent = opened(mlflow, submission="a")  # the second attempt never came so far
    child, over = opened(mlflow, parent=parent), opened(mlflow, parent=parent)
    mlflow.set_terminated(over, "FINISHED")
    accounting.end(FAILED, "FAILED", uri="x")
    assert told(mlflow, parent) == told(mlflow, child) == ("FAILED", "its driver was killed")
    assert told(mlflow, over) == ("FINISHED", None)
    ended_at = mlflow.get_run(parent).info.end_time
    accounting.end(FAILED, "KILLED", uri="x")
    assert told(mlflow, parent)[0] == "FAILED"
    assert mlflow.get_run(parent).info.end_time == ended_at


def test_a_run_that_another_driver_went_on_with_is_left_alone(mlflow: MlflowClient) -> None:
    others = [opened(mlflow, submission=each) for each in ("b", "a-r2", "a-f1")]
    ended = opened(mlflow, submission="a-r1")
    mlflow.set_terminated(ended, "KILLED")
    accounting.end(FAILED, "FAILED", uri="x")
    assert [told(mlflow, each)[0] for each in others] == ["RUNNING"] * 3
    assert told(mlflow, ended) == ("KILLED", None)


LOST = RayJob("FAILED", exit_code=137)


@pytest.mark.parametrize("log", [Log(("x",), {"run_id": "r"}), Log()])
def test_only_the_last_attempt_ends_the_run_and_mlflow_away_delays_it(
    world: World, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """A log that went with its node does not say which run it was."""
    ended: list[tuple[str, str]] = []
    written: list[str] = []
    is_away = True

    def end(job, status, *, uri) -> None:
        if is_away:
            raise RetryableError("MLflow: away")
        ended.append((job.ray_id, status))

    monkeypatch.setattr(accounting, "end", end)
    monkeypatch.setattr(accounting, "write", lambda run, *_, **__: written.append(run))
    monkeypatch.setattr(world.ray, "log", lambda _: log)
    world.configure(backoff_s=1)
    world.ray.ends = lambda _: LOST
    world.add("a", retries=1)
    world.tick(61.0, times=2)
    assert (world.state("a"), ended) == ("queued", [])
    world.tick(61.0, times=3)
    assert (world.state("a"), ended) == ("failed", [])
    assert not world.job("a").is_accounted
    is_away = False
    world.tick(61.0, times=3)
    assert ended == [("a-r1", "FAILED")]
    assert written == (["r"] if log.result else [])
    assert world.job("a").is_accounted


def test_what_was_stopped_is_killed_and_what_goes_on_or_succeeded_is_not_ended() -> None:
    states = ("queued", "running", "succeeded", "failed", "stopped")
    found = [accounting.ending(job("a", state=state)) for state in states]
    assert found == [None, None, None, "FAILED", "KILLED"]


def test_without_any_job_that_ran_there_is_nothing_to_end(
    mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "EXPERIMENT", "none-yet")
    accounting.end(FAILED, "FAILED", uri="x")
    assert mlflow.get_experiment_by_name("none-yet") is None
