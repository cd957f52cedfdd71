"""A search from its run to its version: trials on Ray Tune, then the best one through the gate."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from pydantic import ValidationError

from seatrial.config.addresses import Addresses
from seatrial.config.jobs import read_jobs_config
from seatrial.config.tune import TuneRecipe
from seatrial.errors import SeatrialError, UserError
from seatrial.registry import runs
from seatrial_jobs import job as jobs
from seatrial_jobs import ledger
from seatrial_jobs.events import say
from seatrial_jobs.job import Job, JobFailedError, Terminated
from seatrial_jobs.prepare import steps_of
from seatrial_jobs.search import room, tell
from seatrial_jobs.search.algorithms import suggest
from seatrial_jobs.search.child import open_run
from seatrial_jobs.search.journal import Generation, Journal, Trial, best
from seatrial_jobs.search.register import register
from seatrial_jobs.storage import answering
from seatrial_jobs.workers import groups, trainer


def carry_out(parent: Job) -> int:
    """Run the search whose run is open; the exit code."""
    recipe = cast(TuneRecipe, parent.recipe)
    with answering(parent.place):
        journal = Journal.read(parent.storage)
        journal.try_again(recipe.search.count, is_minimised=recipe.search.is_minimised)
    jobs.tell_plan(parent)
    say(f"search {recipe.search.count} trials of {', '.join(recipe.search.space)}")
    try:
        _search(parent, recipe, journal)
    except Terminated as stop:
        if stop.reason is None:
            for trial in journal.trials.values():
                if trial.state == "running":
                    runs.finish(trial.run_id, "KILLED", uri=parent.mlflow_uri)
        raise
    winner = best(journal.trials, is_minimised=recipe.search.is_minimised)
    _keep(parent, recipe, journal, winner)
    if winner is None:
        causes = [f"trial {t.number}: {t.cause}" for t in journal.trials.values() if t.cause]
        raise JobFailedError(f"no trial came to its end: {(causes or ['all were stopped'])[0]}")
    return register(parent, recipe, journal, winner)


def _search(parent: Job, recipe: TuneRecipe, journal: Journal) -> None:
    """Have Ray Tune run what the journal does not have yet."""
    _quiet()
    import ray

    trainer.connect(recipe)
    jobs.on_termination()  # ray.init put its own handlers in place
    try:
        held = room.await_room(
            recipe.search,
            room.each_trial(recipe, trainer.needs(recipe)),
            ray.cluster_resources(),
            _free,
            grows_to=room.grown(read_jobs_config(Addresses.resolve().home)),
        )
        parent.usage.gpus = min(held, recipe.search.count) * trainer.needs(recipe).get("GPU", 0.0)
        say(f"room for {held} trials at a time")
        faults: list[SeatrialError] = []
        with tempfile.TemporaryDirectory() as scratch:
            tuner = _tuner(parent, recipe, journal, held, scratch, faults)
            try:
                with groups.swept():
                    tuner.fit()
            except Exception as error:
                raise (faults[0] if faults else error) from None  # Tune would show it as a traceback
        groups.leave()
    finally:
        ray.shutdown()


def _free() -> dict[str, float]:
    """What is free, once what killed drivers left behind has been given back."""
    import ray

    groups.reclaim()
    return dict(ray.available_resources())


def _quiet() -> None:
    """Ray Tune says nothing and keeps no results: the journal and MLflow have them."""
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="ray.tune")


def _tuner(
    parent: Job,
    recipe: TuneRecipe,
    journal: Journal,
    held: int,
    scratch: str,
    faults: list[SeatrialError],
) -> Any:
    import ray
    from ray import tune

    from seatrial_jobs.search import trial
    from seatrial_jobs.search.observer import Observer
    from seatrial_jobs.search.schedulers import scheduler
    from seatrial_jobs.search.supply import Supply
    from seatrial_jobs.search.tidy import Tidier

    search, seed = recipe.search, recipe.run.seed
    teller = tell.Teller(journal, search, parent.prepared.steps)
    check = partial(ledger.require_owner, parent.storage, parent.record.driver)
    tidier = Tidier(journal, search, recipe.run)
    observer = Observer(journal, teller, parent.mlflow_uri, check, tidier, faults)
    _reopen(parent, recipe, journal, teller)
    supply = Supply(
        journal, _beginner(parent, recipe, journal, teller), count=search.count, room=held,
        driver=parent.record.driver,
    )  # fmt: skip
    shared = trial.Shared(recipe, jobs.spec_of(parent)(ray.put), parent.storage)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial.run, shared=shared), room.ACTOR),
        tune_config=tune.TuneConfig(
            metric="value",
            mode=search.mode,
            search_alg=supply,
            scheduler=scheduler(search, journal, seed, observer.exploited),
            num_samples=search.count,
        ),
        run_config=run_config(parent.job_id, recipe, scratch, observer),
    )


def run_config(name: str, recipe: TuneRecipe, scratch: str, observer: Any) -> Any:
    """What Ray Tune is told of the search as a whole.

    A trial raises only when it was lost with its process or its machine: Tune starts those again alone.
    """
    from ray import tune

    return tune.RunConfig(
        name=name,
        storage_path=scratch,
        callbacks=[observer],
        failure_config=tune.FailureConfig(max_failures=recipe.run.max_failures),
        verbose=0,
    )


def _beginner(parent: Job, recipe: TuneRecipe, journal: Journal, teller: tell.Teller) -> Callable[[], Trial]:
    """What makes the next trial: values, MLflow run, entry in the journal."""

    def begin() -> Trial:
        number = len(journal.trials) + 1
        values = suggest(recipe.search, journal.trials, recipe.run.seed)
        try:
            steps = steps_of(recipe.with_values(values), parent.prepared.train)
        except ValidationError as error:
            fix = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(
                f"search.space: {tell.shown(values)}: do not go together: {fix}: narrow the space"
            ) from error
        run = open_run(parent, recipe, number, values)
        trial = Trial(number, steps, run.run_id, (Generation(values),))
        with answering(parent.place):
            journal.put(trial)
        teller.started(trial)
        return trial

    return begin


def _reopen(parent: Job, recipe: TuneRecipe, journal: Journal, teller: tell.Teller) -> None:
    """Trials that were cut off go on, each in the run that it has."""
    for trial in list(journal.trials.values()):
        if trial.state == "running":
            open_run(parent, recipe, trial.number, trial.generations[0].values, known=trial.run_id)
            teller.started(trial)


def _keep(parent: Job, recipe: TuneRecipe, journal: Journal, winner: Trial | None) -> None:
    """Print the table; keep it, the picture and the whole journal on the search's run."""
    from seatrial_jobs.search.plot import trials_picture

    search, trials = recipe.search, list(journal.trials.values())
    rows = tell.table(trials, list(search.space), search.metric)
    for line in tell.lines(rows):
        say(line)
    run_id, uri = parent.run.run_id, parent.mlflow_uri
    columns = {name: [row[column] for row in rows[1:]] for column, name in enumerate(rows[0])}
    runs.log_json(run_id, "trials.json", columns, uri=uri)
    runs.log_json(run_id, "journal.json", [asdict(trial) for trial in trials], uri=uri)
    number = winner.number if winner else None
    picture = trials_picture(parent.job_id, trials, number, search.space, search.metric)
    runs.log_picture(run_id, "trials.png", picture, uri=uri)
