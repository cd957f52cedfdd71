"""`jobs.yaml`: what the operator allows teams to take of the cluster, and what it costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from seatrial.config.load import load
from seatrial.config.section import Section, Slug
from seatrial.errors import UserError

Positive = Annotated[float, Field(gt=0)]
FILE_NAME = "jobs.yaml"
FILE_VARIABLE = "SEATRIAL_JOBS_FILE"
TEAM_VARIABLE = "SEATRIAL_TEAM"
DEFAULT_TEAM = "default"


class TeamSection(Section):
    """One team's part of the cluster."""

    gpu_hours: Annotated[float, Field(ge=0)] | None = None
    """GPU-hours that its jobs may use in `window_days`; without it as many as there are."""
    share: Positive = 1.0
    """Its weight where teams compete: with 2 it gets twice what a team with 1 gets."""


class ClusterSection(Section):
    """What an autoscaler may grow the cluster to, over all nodes."""

    cpus: Annotated[float, Field(ge=0)] = 0.0
    """Logical CPUs."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs."""


class JobsConfig(Section):
    """The queue in front of Ray Jobs."""

    teams: dict[Slug, TeamSection] = Field(default_factory=dict)
    """Teams that may submit; without any, every name is a team without a quota."""
    window_days: Positive = 30.0
    """Days that a quota looks back."""
    gpu_hour_price: Annotated[float, Field(ge=0)] | None = None
    """Price of a GPU-hour; without it no cost is estimated."""
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "EUR"
    """What the price is in."""
    patience_s: Positive = 600.0
    """Seconds that a job waits for room before others are held back for it."""
    unschedulable_s: Annotated[float, Field(ge=0)] = 900.0
    """Seconds after which a job that the cluster can never hold fails."""
    backoff_s: Positive = 10.0
    """Pause before the first retry; it doubles with each, up to 10 minutes."""
    max_running: Annotated[int, Field(ge=1)] | None = None
    """Jobs of the queue that run at once; without it as many as the cluster holds."""
    grows_to: ClusterSection | None = None
    """Give this where an autoscaler adds nodes on demand."""
    gpu_tflops: Positive = 125.0
    """Sustained TFLOP/s of one GPU in training, for estimates; 125 is 40 % of an A100's peak in bfloat16."""


def jobs_file(home: Path) -> Path:
    """Where the operator's file is: `SEATRIAL_JOBS_FILE`, else `jobs.yaml` in the stack's home."""
    given = os.environ.get(FILE_VARIABLE)
    return Path(given).expanduser() if given else home / FILE_NAME


def read_jobs_config(home: Path) -> JobsConfig:
    """The operator's file; the defaults where there is none.

    Raises:
        UserError: `SEATRIAL_JOBS_FILE` names no file.
        ConfigError: one problem for each bad field.
    """
    path = jobs_file(home)
    if not path.exists():
        if os.environ.get(FILE_VARIABLE):
            raise UserError(f"{FILE_VARIABLE}: {path}: no such file: give the operator's YAML file")
        return JobsConfig()
    return load(path, JobsConfig)
