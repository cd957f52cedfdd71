"""What a job used and how it ended, written where people look at it: its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from seatrial.config.jobs import JobsConfig
from seatrial.registry import runs
from seatrial.registry.client import asking, connect
from seatrial.store.job import Attempt, Job, ray_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

GPU_HOURS = "seatrial.gpu_hours"
COST = "seatrial.cost"
DIRECT_HOURS = "seatrial.gpu_hours.direct"
"""Of them, those of drivers that the queue knows nothing of."""
MOST_LEFT = 1000
"""Runs that are ended at once; a search has fewer trials at a time."""


def gpu_hours(attempts: Sequence[Attempt], now: float) -> float:
    """GPU-hours of all attempts: GPUs held, times the hours from each driver's start to its end."""
    return sum(attempt.gpu_hours(since=0.0, now=now) for attempt in attempts)


def tags(hours: float, config: JobsConfig) -> dict[str, str]:
    """The run's tags; without a price there is no cost."""
    found = {GPU_HOURS: f"{hours:.9g}"}
    if config.gpu_hour_price is not None:
        found[COST] = f"{hours * config.gpu_hour_price:.2f} {config.currency}"
    return found


def write(run_id: str, hours: float, config: JobsConfig, *, uri: str) -> None:
    """Set the tags: ``hours`` are all that the queue knows of; what other drivers have left is added.

    Raises:
        RetryableError: MLflow does not answer.
    """
    direct = _number(runs.tags_of(run_id, uri=uri), DIRECT_HOURS)
    runs.set_tags(run_id, tags(hours + direct, config), uri=uri)


def add(run_id: str, hours: float, config: JobsConfig, *, uri: str) -> None:
    """Add the hours of a driver that the queue knows nothing of.

    Raises:
        RetryableError: MLflow does not answer.
    """
    known = runs.tags_of(run_id, uri=uri)
    direct = _number(known, DIRECT_HOURS) + hours
    total = tags(_number(known, GPU_HOURS) + hours, config)
    runs.set_tags(run_id, {**total, DIRECT_HOURS: f"{direct:.9g}"}, uri=uri)


def ending(job: Job) -> runs.Status | None:
    """How a run ends whose driver could not end it; None for a job that goes on or succeeded."""
    statuses: dict[str, runs.Status] = {"failed": "FAILED", "stopped": "KILLED"}
    return statuses.get(job.state)


def end(job: Job, status: runs.Status, *, uri: str) -> None:
    """End what the job's attempts have left running: their run, and its children. A run that another driver
    has gone on with bears that one's submission, and is left alone.

    Raises:
        RetryableError: MLflow does not answer.
    """
    tags = {runs.CAUSE: job.cause.text} if job.cause else None
    for run_id in _left(job, uri):
        runs.finish(run_id, status, tags=tags, uri=uri)


def _left(job: Job, uri: str) -> list[str]:
    """The runs that the job's attempts have left running, children first: asked again, none is passed by."""
    attempts = [ray_id(job.id, number) for number in range(job.attempt + 1)]
    with asking():
        client = connect(uri)
        experiment = client.get_experiment_by_name(runs.EXPERIMENT)
        if experiment is None:
            return []
        running = partial(_running, client, experiment.experiment_id)
        own = [run for each in attempts for run in running(runs.SUBMISSION_ID, each)]
        return [child for run in own for child in running(runs.PARENT, run)] + own


def _running(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[str]:
    """The jobs' runs with this tag that have not ended."""
    wanted = f"tags.`{tag}` = '{value}' and attributes.status = 'RUNNING'"
    found = client.search_runs([experiment_id], wanted, max_results=MOST_LEFT)
    return [str(run.info.run_id) for run in found]


def _number(known: Mapping[str, str], name: str) -> float:
    """What a tag says; 0 where it is not there, or people have written something else."""
    try:
        return float(known.get(name, 0.0))
    except ValueError:
        return 0.0
