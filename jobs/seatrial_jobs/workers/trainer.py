"""The only module that starts Ray Train: cluster, worker group, failures."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from seatrial.config.recipe import DEVICE, Recipe
from seatrial.errors import SeatrialError, UserError
from seatrial_jobs.events import say
from seatrial_jobs.storage import Storage, answering
from seatrial_jobs.workers import groups

# Seconds between two looks at the workers; Ray's own 2 s are added to every start and end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Seconds between two looks for nodes that will be taken away, of which some are gone after 30 s.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
# Seconds until workers that find no room are counted again: a node may have gone since the last time.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")

GRACE_S = 30.0
"""Seconds after the deadline of nodes that go in which other workers may end the upload of a checkpoint."""


class TrainingError(SeatrialError):
    """The workers failed more often than the recipe allows."""


def connect(recipe: Recipe) -> None:
    """Join the cluster that this process belongs to or that runs here, else start one for this job.

    What drivers that were killed left behind there is given back: nobody else would.
    """
    _join(recipe)
    groups.reclaim()


def _join(recipe: Recipe) -> None:
    import ray

    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address="auto", **options)
        except ConnectionError:
            wanted = recipe.resources.max_workers * recipe.resources.cpus_per_worker
            cores = len(os.sched_getaffinity(0))
            ray.init(num_cpus=max(cores, int(wanted + 1)), include_dashboard=False, **options)
        return
    if os.environ["RAY_ADDRESS"] == "local":
        wanted = recipe.resources.max_workers * recipe.resources.cpus_per_worker
        ray.init(num_cpus=int(wanted + 1), include_dashboard=False, **options)
        return
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"RAY_ADDRESS: {os.environ['RAY_ADDRESS']}: {reason}: start Ray there or unset it"
        ) from error


def fit(
    make_spec: Callable[[Any], Any],
    place: Storage,
    job_id: str,
    work: Callable[[Any], Any] | None = None,
) -> Any:
    """Run ``work`` (the job itself when not given) on the workers; what the first one returned.

    Raises:
        TrainingError: naming the last failure.
    """
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from seatrial_jobs.workers import worker
    from seatrial_jobs.workers.elastic import KeepFirst, Trainer

    spec = make_spec(ray.put)
    recipe: Recipe = spec.recipe
    on_gpu = _on_gpu(recipe)
    resources = _each(recipe)
    _warn_if_too_small(recipe, resources)
    with answering(place):
        filesystem, path = place.connect()
    trainer = Trainer(
        partial(work or worker.work, spec),
        scaling_config=ScalingConfig(
            num_workers=recipe.resources.workers,
            elastic_resize_monitor_interval_s=recipe.resources.resize_every_s,
            use_gpu=on_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=job_id,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=recipe.run.max_failures, preemption_grace_s=GRACE_S),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[KeepFirst()],
        ),
    )
    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        raise TrainingError(_cause(error)) from error


def needs(recipe: Recipe) -> dict[str, float]:
    """Resources of all workers of a job, as many as it may come to have."""
    return {name: each * recipe.resources.max_workers for name, each in _each(recipe).items()}


def _each(recipe: Recipe) -> dict[str, float]:
    """Resources of one worker."""
    return {"CPU": recipe.resources.cpus_per_worker, **({"GPU": 1.0} if _on_gpu(recipe) else {})}


def _on_gpu(recipe: Recipe) -> bool:
    """`auto` is what the queue says that it counts, or else by what the cluster has now."""
    import ray

    wanted = recipe.resources.device
    if wanted == "auto":
        wanted = os.environ.get(DEVICE) or "auto"
    if wanted == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) >= recipe.resources.min_workers)
    return wanted == "gpu"


def _warn_if_too_small(recipe: Recipe, resources: dict[str, float]) -> None:
    import ray

    present = ray.cluster_resources()
    for name, each in resources.items():
        wanted = each * recipe.resources.min_workers
        if present.get(name, 0) < wanted:
            say(f"waiting: the job asks for {wanted:g} {name}, the cluster has {present.get(name, 0):g}")


def _cause(error: Exception) -> str:
    """The last line of the first worker's failure, or of the whole error."""
    failures = getattr(error, "worker_failures", None) or {}
    first = failures[min(failures)] if failures else error
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
