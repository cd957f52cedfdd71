"""A trial's MLflow run: a child of the search's."""

from __future__ import annotations

from typing import Any

from seatrial.config.tune import TuneRecipe
from seatrial.registry import runs
from seatrial_jobs import ledger
from seatrial_jobs.job import Job
from seatrial_jobs.search.journal import id_of

TRIAL = "seatrial.trial"


def open_run(
    parent: Job, recipe: TuneRecipe, number: int, values: dict[str, Any], known: str | None = None
) -> runs.Run:
    """A trial's MLflow run, a child of the search's; ``values`` are those that it began with."""
    trial_recipe = recipe.with_values(values)
    tags = {
        runs.PARENT: parent.run.run_id,
        TRIAL: str(number),
        runs.JOB_ID: f"{parent.job_id}/{id_of(number)}",
        "seatrial.method": recipe.method.type,
        "seatrial.data_digest": parent.prepared.split.digest,
        "seatrial.code_digest": parent.code_digest,
    }
    return runs.open_run(
        f"{recipe.name}-{id_of(number)}",
        attempt=f"{parent.record.attempt}-{number}",
        params=runs.flatten(ledger.identity(trial_recipe)),
        tags=tags,
        settings=runs.flatten(ledger.operational(trial_recipe)),
        known_run_id=known,
        uri=parent.mlflow_uri,
    )
