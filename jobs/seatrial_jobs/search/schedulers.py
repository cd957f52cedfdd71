"""Which trials go on: schedulers of Ray Tune that know what the journal knows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.schedulers.async_hyperband import AsyncHyperBandScheduler

from seatrial.config.search import Choice, Domain, IntUniform, LogUniform, PbtScheduler, SearchSection
from seatrial_jobs.search.journal import Journal, Origin, Report, id_of
from seatrial_jobs.search.population import donor

TIME = "step"
"""What schedulers count in."""
NO_END = 1 << 40
"""More steps than any trial has: nothing but a rung stops one."""
Exploit = Callable[[int, Origin, dict[str, Any]], None]
"""Number of the trial that goes on from another, from where, with which values."""


def scheduler(search: SearchSection, journal: Journal, seed: int, exploit: Exploit) -> TrialScheduler:
    """The scheduler of a search, with the trials of ``journal`` behind it."""
    chosen = search.scheduler
    if chosen.type == "pbt":
        return Population(search, journal, seed, exploit)
    if chosen.type == "asha":
        return Halving(search, journal)
    return FIFOScheduler()


class Halving(AsyncHyperBandScheduler):
    """Asynchronous successive halving, whose rungs keep the measurements made before a restart."""

    def __init__(self, search: SearchSection, journal: Journal) -> None:
        chosen = search.scheduler
        assert chosen.type == "asha"  # noqa: S101
        super().__init__(
            time_attr=TIME,
            max_t=NO_END,
            grace_period=chosen.grace_steps,
            reduction_factor=chosen.reduction,
        )
        sign = -1 if search.is_minimised else 1
        for trial in journal.trials.values():
            stand_in = SimpleNamespace(trial_id=id_of(trial.number))
            for report in trial.reports:
                self._brackets[0].on_result(stand_in, report.step, sign * report.value)


class Population(FIFOScheduler):
    """Population-based training whose comparisons and copies are ours.

    Ray's own compares with what each trial has come to by now and leaves out those that have ended, so that a
    trial whose workers start late finds nobody to learn from. And under Ray Train v2 a trial gives Tune no
    checkpoint, so that its copying would skip each one silently. Here the new configuration names the
    donor's checkpoint, and the trial puts it in place. The whole population runs at once: nobody makes room.
    """

    def __init__(self, search: SearchSection, journal: Journal, seed: int, exploit: Exploit) -> None:
        assert search.scheduler.type == "pbt"  # noqa: S101
        super().__init__()
        self._search, self._chosen, self._journal = search, search.scheduler, journal
        self._seed, self._exploit_to = seed, exploit
        self._compared: dict[int, int] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take a trial in; one from before a restart is not compared twice at the same step."""
        number = trial.config["trial"]
        self._compared[number] = self._journal.trials[number].reached

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Compare at each interval except the end; a weak trial starts again with another's weights."""
        number, step = trial.config["trial"], result[TIME]
        if step >= trial.config["steps"] or step - self._compared[number] < self._chosen.interval_steps:
            return str(TrialScheduler.CONTINUE)
        self._compared[number] = step
        found = donor(
            self._journal.trials.values(),
            number,
            Report(result["generation"], step, result["value"], result["checkpoint"]),
            quantile=self._chosen.quantile,
            is_minimised=self._search.is_minimised,
            chance=self._chance(trial),
        )
        if found is None:
            return str(TrialScheduler.CONTINUE)
        self._compared[number] = found[1].step
        tune_controller.pause_trial(trial, should_checkpoint=False)
        trial.set_config(self._changed(trial, *found))
        return str(TrialScheduler.NOOP)

    def _changed(self, trial: Any, number: int, measured: Report) -> dict[str, Any]:
        """The configuration that goes on from a measurement of the trial ``number``; the journal notes it."""
        before = self._journal.trials[number].generations[measured.generation - 1].values
        values = explore(before, self._search.space, self._chosen, self._chance(trial))
        origin = Origin(number, measured.generation, measured.checkpoint, measured.step)
        self._exploit_to(trial.config["trial"], origin, values)
        generation = trial.config["generation"] + 1
        return {**trial.config, "values": values, "generation": generation, "origin": vars(origin)}

    def _chance(self, trial: Any) -> random.Random:
        return random.Random(f"{self._seed}-{trial.config['trial']}-{trial.config['generation']}")  # noqa: S311


def explore(
    values: Mapping[str, Any], space: Mapping[str, Domain], chosen: PbtScheduler, chance: random.Random
) -> dict[str, Any]:
    """The donor's values, each moved a little or drawn anew, inside its range."""
    return {path: _moved(values[path], domain, chosen, chance) for path, domain in space.items()}


def _moved(value: Any, domain: Domain, chosen: PbtScheduler, chance: random.Random) -> Any:
    anew = chance.random() < chosen.resample
    if isinstance(domain, Choice):
        return chance.choice(domain.values) if anew else _beside(value, domain.values, chance)
    if anew:
        return _drawn(domain, chance)
    moved = min(max(value * chance.choice(chosen.factors), domain.low), domain.high)
    return round(moved) if isinstance(domain, IntUniform) else moved


def _drawn(domain: Domain, chance: random.Random) -> float | int:
    assert not isinstance(domain, Choice)  # noqa: S101
    if isinstance(domain, IntUniform):
        return chance.randint(domain.low, domain.high)
    if isinstance(domain, LogUniform):
        return math.exp(chance.uniform(math.log(domain.low), math.log(domain.high)))
    return chance.uniform(domain.low, domain.high)


def _beside(value: Any, values: Sequence[Any], chance: random.Random) -> Any:
    """A neighbour in the list, or the same where the list ends."""
    place = values.index(value) + chance.choice((-1, 1))
    return values[min(max(place, 0), len(values) - 1)]
