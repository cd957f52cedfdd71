"""Hands trials to Ray Tune: first those that a restart cut off, then new ones, as long as there is room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search.search_algorithm import SearchAlgorithm

from seatrial_jobs.search.journal import Journal, Trial, id_of


class Supply(SearchAlgorithm):  # type: ignore[misc]
    """The search as Tune sees it. ``begin`` makes the trial that comes next and puts it in the journal.

    Not a `Searcher`: those cannot go with population-based training, and name their trials by chance.
    """

    def __init__(
        self, journal: Journal, begin: Callable[[], Trial], *, count: int, room: int, driver: str
    ) -> None:
        self._journal, self._begin = journal, begin
        self._count, self._room, self._driver = count, room, driver
        self._cut_off = [trial for trial in journal.trials.values() if trial.state == "running"]
        self._live: set[str] = set()
        self._spec: dict[str, Any] = {}

    @property
    def total_samples(self) -> int:
        """Trials in all."""
        return self._count

    def add_configurations(self, experiments: Any) -> None:
        """Take what Tune knows of every trial: the function to run, resources, storage."""
        self._spec = (experiments[0] if isinstance(experiments, list) else experiments).spec

    def next_trial(self) -> TuneTrial | None:
        """The next trial; ``None`` while there is no room, and when there are no more."""
        if self.is_finished() or len(self._live) >= self._room:
            return None
        trial = self._cut_off.pop(0) if self._cut_off else self._begin()
        name = id_of(trial.number)
        self._live.add(name)
        spec = {**self._spec, "config": config_of(trial, self._driver)}
        return _create_trial_from_spec(spec, _make_parser(), trial_id=name, experiment_tag=name)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Make room."""
        self._live.discard(trial_id)

    def is_finished(self) -> bool:
        """Whether every trial has been handed out."""
        return not self._cut_off and len(self._journal.trials) >= self._count


def config_of(trial: Trial, driver: str) -> dict[str, Any]:
    """What a trial is told by Tune; `values`, `generation` and `origin` change when it is exploited."""
    origin = trial.generations[-1].origin
    return {
        "trial": trial.number,
        "steps": trial.steps,
        "run_id": trial.run_id,
        "driver": driver,
        "generation": trial.generation,
        "values": dict(trial.values),
        "origin": asdict(origin) if origin else None,
    }
