"""Where a trial's values come from: each a function of the space, the seed and the trials before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from seatrial.config.search import Choice, Domain, IntUniform, LogUniform, SearchSection
from seatrial_jobs.search.journal import Trial


def suggest(search: SearchSection, trials: Mapping[int, Trial], seed: int) -> dict[str, Any]:
    """Values for the trial that comes after ``trials``, by field.

    The same trials give the same answer, so that a search goes on after a restart as it would have.
    """
    number = len(trials)
    if search.algorithm.type == "grid":
        return grid(search.space, number)
    return _ask(search, trials.values(), seed + number)


def grid(space: Mapping[str, Domain], number: int) -> dict[str, Any]:
    """The combination with this number, counted from 0; the last field changes fastest."""
    listed = [domain.values for domain in space.values() if isinstance(domain, Choice)]
    chosen = next(itertools.islice(itertools.product(*listed), number, None))
    return dict(zip(space, chosen, strict=True))


def _ask(search: SearchSection, trials: Iterable[Trial], seed: int) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    algorithm = search.algorithm
    sampler: optuna.samplers.BaseSampler
    if algorithm.type == "tpe":
        # Trials that still run count as bad ones, so that those at one time do not try the same.
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=algorithm.startup_trials, seed=seed, constant_liar=True
        )
    else:
        sampler = optuna.samplers.RandomSampler(seed=seed)
    direction = "minimize" if search.is_minimised else "maximize"
    study = optuna.create_study(sampler=sampler, direction=direction)
    space = {path: _distribution(domain) for path, domain in search.space.items()}
    study.add_trials([_told(trial, search.space, space) for trial in trials])
    found = study.ask(space).params
    return {
        path: domain.values[found[path]] if isinstance(domain, Choice) else found[path]
        for path, domain in search.space.items()
    }


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):  # by place, since Optuna takes no lists
        return CategoricalDistribution(range(len(domain.values)))
    if isinstance(domain, IntUniform):
        return IntDistribution(domain.low, domain.high)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _told(trial: Trial, domains: Mapping[str, Domain], space: Mapping[str, Any]) -> Any:
    """A trial as Optuna knows it: one that was stopped counts by how far it came, and what is no number does
    not count."""
    from optuna.trial import TrialState, create_trial

    states = {"running": TrialState.RUNNING, "finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
    params = {path: _index(domain, trial.values[path]) for path, domain in domains.items()}
    state = states.get(trial.state, TrialState.FAIL)
    if state == TrialState.COMPLETE and not math.isfinite(math.nan if trial.value is None else trial.value):
        state = TrialState.FAIL
    return create_trial(
        state=state,
        params=params,
        distributions=dict(space),
        value=trial.value if state == TrialState.COMPLETE else None,
        intermediate_values={r.step: r.value for r in trial.reports if math.isfinite(r.value)},
    )


def _index(domain: Domain, value: Any) -> Any:
    if not isinstance(domain, Choice):
        return value
    return [_plain(each) for each in domain.values].index(_plain(value))


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return list(value) if isinstance(value, tuple) else value
