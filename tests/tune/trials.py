"""Trials as the parts of a search see them, without any that ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seatrial.config.search import SearchSection
from seatrial_jobs.search.journal import Generation, Journal, Report, Trial

SPACE = {
    "run.learning_rate": {"type": "log_uniform", "low": 1e-5, "high": 1e-1},
    "run.batch_rows": {"type": "int_uniform", "low": 2, "high": 64},
    "method.rank": {"type": "choice", "values": [4, 8, 16]},
}


def search(**given: Any) -> SearchSection:
    return SearchSection.model_validate({"space": SPACE, **given})


def trial(number: int, value: float | None = None, **given: Any) -> Trial:
    values = given.pop("values", {"run.learning_rate": 1e-3, "run.batch_rows": 8, "method.rank": 8})
    reports = () if value is None else (Report(1, 20, value, "checkpoint-00000020-abcdef"),)
    state = "running" if value is None else "finished"
    return Trial(
        number, 20, f"run{number}", (Generation(values),), **{"state": state, **given}, reports=reports
    )


def measured(number: int, *values: float, every: int = 10, **given: Any) -> Trial:
    """A trial of 40 steps that was measured every so many, with a checkpoint each time."""
    reports = tuple(
        Report(1, step, value, f"checkpoint-{step:08d}-{number:06x}")
        for step, value in zip(range(every, 41, every), values, strict=False)
    )
    values_of = {"run.learning_rate": 1e-2 / number}
    return Trial(number, 40, f"run{number}", (Generation(values_of),), reports=reports, **given)


def supplied(journal: Journal, scratch: Path, max_failures: int = 0) -> Any:
    """The first trial of ``journal`` that was cut off, as Ray Tune gets it."""
    from ray.tune import Experiment

    from seatrial_jobs.search.supply import Supply

    supply = Supply(journal, _nothing_new, count=len(journal.trials), room=1, driver="driver")
    name, place = "join-search", str(scratch)
    supply.add_configurations([Experiment(name, run=_train, max_failures=max_failures, storage_path=place)])
    return supply.next_trial()


def _train(config: dict[str, Any]) -> None:
    """Stands in the place of a trial, which none of these tests starts."""


def _nothing_new() -> Trial:
    raise AssertionError("every trial has begun")
