"""A job of the queue and its attempts, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["scheduled", "queued", "running", "succeeded", "failed", "stopped"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "stopped")


@dataclass(frozen=True)
class Need:
    """What a job holds of the cluster while it runs: so many workers, each on one node."""

    workers: int = 1
    cpus: float = 1.0
    """Logical CPUs of each worker."""
    gpus: float = 0.0
    """GPUs of each worker."""
    most: int | None = None
    """Workers that it may grow to when there is room; quotas count these."""
    is_auto: bool = False
    """One GPU for each worker where the cluster has that many, none elsewhere."""

    @property
    def counted_gpus(self) -> float:
        """GPUs that it is taken to use, as many as it may come to hold."""
        return (self.most or self.workers) * self.gpus


@dataclass(frozen=True)
class Spec:
    """What is handed to Ray."""

    entrypoint: str
    retry_entrypoint: str
    """The command once an attempt has begun to do the work: it goes on where the last one stopped."""
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None
    """Digest of the folder that travels with the job; None where the cluster sees our files."""
    recipe: str | None = None
    """The recipe as the person gave it, for commands to run next."""


@dataclass(frozen=True)
class Cause:
    """Why an attempt ended badly."""

    kind: str
    text: str
    """One line."""
    remedy: str
    """The command to run next, or what to change before it."""
    is_retryable: bool = False


@dataclass(frozen=True)
class Job:
    """One submission, however often it is attempted. Times are seconds since the epoch."""

    id: str
    digest: str
    """Of code, configuration and data: the same work has the same one."""
    name: str
    team: str
    priority: int
    spec: Spec
    need: Need
    submitted_at: float
    ready_at: float
    """Not before then: when a retry is due, or a schedule's next time."""
    state: State = "queued"
    message: str = ""
    """What a queued job waits for."""
    after: tuple[str, ...] = ()
    retries: int = 1
    failures: int = 0
    """Attempts that failed since a person last asked for the job."""
    attempt: int = 0
    """Number of the attempt that runs, or comes next."""
    time_limit_s: float | None = None
    cron: str | None = None
    """Makes it a schedule: it never runs itself."""
    wants_stop: bool = False
    is_accounted: bool = False
    passed_at: float | None = None
    """Since when others start before it because it does not fit."""
    ended_at: float | None = None
    exit_code: int | None = None
    cause: Cause | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    """`run`, `run_id`, `version`, as far as the job said so; `began` when an attempt may have done work."""

    @property
    def ray_id(self) -> str:
        """Ray's submission id of the attempt: Ray takes each only once."""
        return ray_id(self.id, self.attempt)


@dataclass(frozen=True)
class Attempt:
    """One run of a job's driver."""

    job_id: str
    number: int
    team: str
    gpus: float
    """GPUs that it holds, over all workers."""
    started_at: float
    ended_at: float | None = None
    status: str = "RUNNING"
    cause: str = ""

    def gpu_hours(self, *, since: float, now: float) -> float:
        """GPU-hours from ``since`` on, up to ``now`` while it runs."""
        end = now if self.ended_at is None else self.ended_at
        return self.gpus * max(0.0, end - max(since, self.started_at)) / 3600


def ray_id(job_id: str, attempt: int) -> str:
    """`ID`, `ID-r1`, `ID-r2`, …"""
    return f"{job_id}-r{attempt}" if attempt else job_id
