"""Which trials go on: Ray Tune's schedulers, told what the journal knows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.schedulers.async_hyperband import AsyncHyperBandScheduler
from ray.tune.schedulers.pbt import PopulationBasedTraining

from seatrial.config.search import Choice, Domain, IntUniform, LogUniform, PbtScheduler, SearchSection
from seatrial_jobs.search.journal import Journal, Origin

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
            for report in trial.reports:
                stand_in = SimpleNamespace(trial_id=str(trial.number))
                self._brackets[0].on_result(stand_in, report.step, sign * report.value)


class Population(PopulationBasedTraining):
    """Population-based training whose copies are ours: weights, optimizer and step from storage.

    Under Ray Train v2 a trial gives Tune no checkpoint, so that Tune's own copying would skip each one
    silently. Here the new configuration names the donor's checkpoint, and the trial puts it in place.
    """

    def __init__(self, search: SearchSection, journal: Journal, seed: int, exploit: Exploit) -> None:
        chosen = search.scheduler
        assert chosen.type == "pbt"  # noqa: S101
        super().__init__(
            time_attr=TIME,
            perturbation_interval=float(chosen.interval_steps),
            quantile_fraction=chosen.quantile,
            custom_explore_fn=dict,  # Tune wants one; `_get_new_config` does the work
            log_config=False,
        )
        self._search, self._chosen, self._journal = search, chosen, journal
        self._seed, self._exploit_to = seed, exploit

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take a trial in; one from before a restart is not compared twice at the same step."""
        super().on_trial_add(tune_controller, trial)
        self._trial_state[trial].last_perturbation_time = self._journal.trials[trial.config["trial"]].step

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Compare, except at the end. The whole population runs at once, so that nobody makes room."""
        if result[TIME] >= trial.config["steps"]:
            return str(TrialScheduler.CONTINUE)
        decision = str(super().on_trial_result(tune_controller, trial, result))
        return str(TrialScheduler.CONTINUE) if decision == TrialScheduler.PAUSE else decision

    def _checkpoint_or_exploit(
        self, trial: Any, tune_controller: Any, upper_quantile: list[Any], lower_quantile: list[Any]
    ) -> None:
        if trial in lower_quantile:
            donor = self._chance(trial).choice(upper_quantile)
            self._exploit(tune_controller, trial, donor)
            # Nothing of Tune's is restored: the configuration says from where the trial goes on.
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = None

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        donor, last = trial_to_clone.config, self._trial_state[trial_to_clone].last_result
        values = explore(donor["values"], self._search.space, self._chosen, self._chance(trial))
        origin = Origin(donor["trial"], donor["generation"], last["checkpoint"], last[TIME])
        self._exploit_to(trial.config["trial"], origin, values)
        changed = {
            "values": values,
            "generation": trial.config["generation"] + 1,
            "origin": vars(origin),
        }
        return {**trial.config, **changed}, {}

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
