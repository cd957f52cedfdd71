"""MLflow runs: one for each job, however often its workers or its driver start again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from seatrial.config.addresses import Addresses, public
from seatrial.registry.client import ABSENT, asking, connect, experiment_of, transferring

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

EXPERIMENT = "seatrial-jobs"
BATCH_LIMIT = 1000  # metrics that MLflow takes in one request
PARAM_LIMIT = 100  # parameters that MLflow takes in one request
PARAM_LENGTH = 6000  # characters of a parameter's value

JOB_ID = "seatrial.job_id"
ATTEMPT = "seatrial.attempt"
SUBMISSION_ID = "seatrial.submission_id"
PARENT = "mlflow.parentRunId"
CAUSE = "seatrial.cause"
GATE = "seatrial.gate"
GATE_REASONS = "seatrial.gate_reasons"
SETTING = "seatrial.setting."
"""Begins the tag of a recipe's field that may differ each time that the job runs."""

Status = Literal["FINISHED", "FAILED", "KILLED"]
P = ParamSpec("P")
R = TypeVar("R")


def _retryable(call: Callable[P, R]) -> Callable[P, R]:
    """``call``, with MLflow's errors turned into one kind whose message is one line."""

    @wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with asking():
            return call(*args, **kwargs)

    return wrapped


def _client(uri: str | None) -> MlflowClient:
    return _connected(uri or Addresses.resolve().mlflow_uri)


@lru_cache(maxsize=4)
def _connected(uri: str) -> MlflowClient:
    """One client for each server: a probe for every call would cost more than the call."""
    return connect(uri)


@dataclass(frozen=True)
class Point:
    """One measurement. ``at_ms`` is the time it was taken; sent twice, the same point is stored once."""

    key: str
    value: float
    step: int
    at_ms: int


@dataclass(frozen=True)
class Run:
    """One MLflow run and the page that shows it."""

    run_id: str
    url: str


@_retryable
def open_run(
    name: str,
    *,
    attempt: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
    known_run_id: str | None = None,
    uri: str | None = None,
) -> Run:
    """The run of a job's ``attempt``, opened again when it is there and created when it is not.

    ``params`` are written once; ``settings`` become tags that replace those of the time before. How the run
    ended before, and why, is taken off.

    Raises:
        RetryableError: MLflow does not answer.
    """
    client = _client(uri)
    experiment_id = experiment_of(client, EXPERIMENT)
    run_id = _known(client, known_run_id) or _of_attempt(client, experiment_id, attempt)
    if run_id is None:
        made = client.create_run(experiment_id, run_name=name, tags={ATTEMPT: attempt, **tags})
        run_id = str(made.info.run_id)
    else:
        client.update_run(run_id, status="RUNNING")
    shown = {f"{SETTING}{key}": value for key, value in (settings or {}).items()}
    _describe(client, run_id, params, {**tags, **shown})
    return Run(run_id, f"{public(client.tracking_uri)}/#/experiments/{experiment_id}/runs/{run_id}")


@_retryable
def log_points(run_id: str, points: Sequence[Point], *, uri: str | None = None) -> None:
    """Write measurements; writing the same ones again changes nothing."""
    from mlflow.entities import Metric

    client = _client(uri)
    for start in range(0, len(points), BATCH_LIMIT):
        part = points[start : start + BATCH_LIMIT]
        client.log_batch(run_id, metrics=[Metric(p.key, p.value, p.at_ms, p.step) for p in part])


@_retryable
def latest(run_id: str, *, uri: str | None = None) -> dict[str, tuple[int, float]]:
    """The last step and value of every metric of the run."""
    return look(run_id, uri=uri)[0]


@_retryable
def look(run_id: str, *, uri: str | None = None) -> tuple[dict[str, tuple[int, float]], dict[str, str]]:
    """The last step and value of every metric, and the tags, in one request."""
    metrics, tags = look_at(run_id, uri=uri)
    return {key: (point.step, point.value) for key, point in metrics.items()}, tags


@_retryable
def look_at(run_id: str, *, uri: str | None = None) -> tuple[dict[str, Point], dict[str, str]]:
    """The last point of every metric, and the tags, in one request."""
    data = _client(uri).get_run(run_id).data
    last = {
        m.key: Point(m.key, float(m.value), int(m.step), int(m.timestamp)) for m in data.to_proto().metrics
    }
    return last, dict(data.tags)


@_retryable
def history(run_id: str, key: str, *, uri: str | None = None) -> list[tuple[int, float]]:
    """Every step and value of one metric, by step."""
    found = _client(uri).get_metric_history(run_id, key)
    return sorted((int(metric.step), float(metric.value)) for metric in found)


@_retryable
def tags_of(run_id: str, *, uri: str | None = None) -> dict[str, str]:
    """The run's tags."""
    return look(run_id, uri=uri)[1]


@_retryable
def set_tags(run_id: str, tags: Mapping[str, str], *, uri: str | None = None) -> None:
    """Add or replace tags."""
    from mlflow.entities import RunTag

    _client(uri).log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


@_retryable
def log_json(run_id: str, name: str, value: Any, *, uri: str | None = None) -> None:
    """Keep ``value`` as the run's artifact ``name``, a JSON file."""
    _client(uri).log_dict(run_id, value, name)


@_retryable
def log_picture(run_id: str, name: str, figure: Figure, *, uri: str | None = None) -> None:
    """Keep a matplotlib figure as the run's artifact ``name``."""
    _client(uri).log_figure(run_id, figure, name)


@_retryable
def log_folder(run_id: str, folder: Path, name: str, *, uri: str | None = None) -> None:
    """Keep the files of ``folder`` as the run's artifact folder ``name``."""
    client = _client(uri)
    with transferring():
        client.log_artifacts(run_id, str(folder), name)


@_retryable
def finish(
    run_id: str, status: Status, *, tags: Mapping[str, str] | None = None, uri: str | None = None
) -> None:
    """End the run."""
    if tags:
        set_tags(run_id, tags, uri=uri)
    _client(uri).set_terminated(run_id, status)


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Every set field of a dumped configuration as `group.field` → text."""
    return dict(_flat(values, ""))


def _flat(value: Any, at: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{at}.{key}" if at else key)
    elif value is not None:
        yield at, str(value)[:PARAM_LENGTH]


def _known(client: MlflowClient, run_id: str | None) -> str | None:
    """``run_id`` if this server has that run and it was not deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise
    return run_id if info.lifecycle_stage == "active" else None


def _of_attempt(client: MlflowClient, experiment_id: str, attempt: str) -> str | None:
    """The run that a driver created for this attempt before it could note its id."""
    found = client.search_runs([experiment_id], f"tags.`{ATTEMPT}` = '{attempt}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _describe(client: MlflowClient, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Set tags, and the parameters that the run does not have yet: MLflow refuses to change one.

    Tags of an earlier time that no longer hold are deleted.
    """
    from mlflow.entities import Param, RunTag

    present = client.get_run(run_id).data
    fresh = [Param(key, value) for key, value in params.items() if key not in present.params]
    for start in range(0, len(fresh), PARAM_LIMIT):
        client.log_batch(run_id, params=fresh[start : start + PARAM_LIMIT])
    for key in present.tags:
        if key in (CAUSE, GATE, GATE_REASONS) or (key.startswith(SETTING) and key not in tags):
            client.delete_tag(run_id, key)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
