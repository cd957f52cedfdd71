"""The best trial becomes a version: evaluated from its last checkpoint, gated, with its lineage in tags."""

from __future__ import annotations

from dataclasses import replace

from seatrial.config.tune import TuneRecipe
from seatrial.registry import runs
from seatrial_jobs import job as jobs
from seatrial_jobs import ledger
from seatrial_jobs.events import emit, say
from seatrial_jobs.job import Job
from seatrial_jobs.search import tell
from seatrial_jobs.search.child import open_run
from seatrial_jobs.search.journal import Journal, Trial, folder_of, id_of
from seatrial_jobs.storage import answering

LINEAGE = "seatrial.search."
"""Begins the tags that tell from which search a version comes."""


def register(parent: Job, recipe: TuneRecipe, journal: Journal, winner: Trial) -> int:
    """Evaluate the best trial's last checkpoint, ask the gate, and register the version."""
    run = open_run(parent, recipe, winner.number, winner.generations[0].values, known=winner.run_id)
    name = folder_of(winner.number, winner.generation)
    record = ledger.take_over(parent.storage.below(name), force=False)
    labels = {LINEAGE + key: value for key, value in lineage_of(parent, journal, winner).items()}
    labels |= jobs.code_labels(parent.record)
    child = Job(
        recipe=recipe.with_values(winner.values),
        prepared=replace(parent.prepared, steps=winner.steps),
        job_id=name,
        place=parent.storage,
        record=replace(record, run_id=run.run_id),
        run=run,
        mlflow_uri=parent.mlflow_uri,
        code_digest=parent.code_digest,
        labels={**labels, runs.JOB_ID: f"{parent.job_id}/{id_of(winner.number)}"},
    )
    emit("best", trial=winner.number, value=winner.value, values=winner.values)
    say(
        f"best  trial {winner.number}  {recipe.search.metric} {winner.value:.4f}  {tell.shown(winner.values)}"
    )
    code, version = 0, record.version
    if version is None:
        with answering(parent.place):
            ledger.save(child.storage, child.record)
        runs.set_tags(run.run_id, labels, uri=parent.mlflow_uri)
        code = jobs.conclude(child, jobs.train(child))
        version = (ledger.read(child.storage) or record).version
    _finish(parent, winner, version)
    return code


def _finish(parent: Job, winner: Trial, version: str | None) -> None:
    tags = {"seatrial.best_trial": str(winner.number), "seatrial.best_run": winner.run_id}
    tags[runs.GATE] = "failed"
    if version is not None:
        with answering(parent.place):
            ledger.save(parent.storage, replace(parent.record, version=version))
        tags |= {runs.GATE: "passed", "seatrial.version": f"{parent.target}/{version}"}
    runs.finish(parent.run.run_id, "FINISHED", tags=tags, uri=parent.mlflow_uri)


def lineage_of(parent: Job, journal: Journal, winner: Trial) -> dict[str, str]:
    """Parent run, trial, number of trials, sampled values, and whose checkpoints it went on from."""
    copies = [
        f"trial {origin.trial} after step {origin.step} ({origin.checkpoint})"
        for origin in (generation.origin for generation in winner.generations)
        if origin is not None
    ]
    return {
        "parent_run": parent.run.run_id,
        "trial": str(winner.number),
        "trials": str(len(journal.trials)),
        **({"copied_from": "; ".join(copies)} if copies else {}),
        **{f"value.{path}": str(value) for path, value in winner.values.items()},
    }
