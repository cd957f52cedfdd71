"""What a job used, written where people look at it: its MLflow run."""

from __future__ import annotations

from collections.abc import Sequence

from seatrial.config.jobs import JobsConfig
from seatrial.registry import runs
from seatrial.store.job import Attempt

GPU_HOURS = "seatrial.gpu_hours"
COST = "seatrial.cost"


def gpu_hours(attempts: Sequence[Attempt], now: float) -> float:
    """GPU-hours of all attempts: GPUs held, times the hours from each driver's start to its end."""
    return sum(attempt.gpu_hours(since=0.0, now=now) for attempt in attempts)


def tags(hours: float, config: JobsConfig) -> dict[str, str]:
    """The run's tags; without a price there is no cost."""
    found = {GPU_HOURS: f"{hours:.4g}"}
    if config.gpu_hour_price is not None:
        found[COST] = f"{hours * config.gpu_hour_price:.2f} {config.currency}"
    return found


def write(run_id: str, hours: float, config: JobsConfig, *, uri: str) -> None:
    """Set the tags.

    Raises:
        RetryableError: MLflow does not answer.
    """
    runs.set_tags(run_id, tags(hours, config), uri=uri)
