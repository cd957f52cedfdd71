"""What a job used, written where people look at it: its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seatrial.config.jobs import JobsConfig
from seatrial.registry import runs
from seatrial.store.job import Attempt

GPU_HOURS = "seatrial.gpu_hours"
COST = "seatrial.cost"
DIRECT_HOURS = "seatrial.gpu_hours.direct"
"""Of them, those of drivers that the queue knows nothing of."""


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


def _number(known: Mapping[str, str], name: str) -> float:
    """What a tag says; 0 where it is not there, or people have written something else."""
    try:
        return float(known.get(name, 0.0))
    except ValueError:
        return 0.0
