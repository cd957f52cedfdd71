"""The `search` section: which fields of a recipe are tried out, how, and how often."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from seatrial.config.section import PositiveInt, Section, Share, wrong

TRIALS = 12
"""Trials of a search that does not say how many."""
S = TypeVar("S", bound=Section)


class Uniform(Section):
    """Any number between two, each as likely."""

    type: Literal["uniform"]
    """Selects this kind."""
    low: float
    """Smallest value."""
    high: float
    """Largest value; above `low`."""

    @model_validator(mode="after")
    def _rises(self) -> Uniform:
        return _rising(self, self.low, self.high)


class LogUniform(Section):
    """Any number between two, each order of magnitude as likely."""

    type: Literal["log_uniform"]
    """Selects this kind."""
    low: Annotated[float, Field(gt=0)]
    """Smallest value."""
    high: Annotated[float, Field(gt=0)]
    """Largest value; above `low`."""

    @model_validator(mode="after")
    def _rises(self) -> LogUniform:
        return _rising(self, self.low, self.high)


class IntUniform(Section):
    """Any whole number between two, both included."""

    type: Literal["int_uniform"]
    """Selects this kind."""
    low: int
    """Smallest value."""
    high: int
    """Largest value; above `low`."""

    @model_validator(mode="after")
    def _rises(self) -> IntUniform:
        return _rising(self, self.low, self.high)


class Choice(Section):
    """One of the listed values."""

    type: Literal["choice"]
    """Selects this kind."""
    values: Annotated[tuple[Any, ...], Field(min_length=1)]
    """What is tried; each must be a value that the field takes."""


Domain = Annotated[Uniform | LogUniform | IntUniform | Choice, Field(discriminator="type")]


class TpeAlgorithm(Section):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's: learns from earlier trials."""

    type: Literal["tpe"]
    """Selects this algorithm."""
    startup_trials: PositiveInt = 6
    """Random trials before the first that is learnt."""


class RandomAlgorithm(Section):
    """Each trial is drawn without looking at the others."""

    type: Literal["random"]
    """Selects this algorithm."""


class GridAlgorithm(Section):
    """Every combination of the listed values, once; takes `choice` only."""

    type: Literal["grid"]
    """Selects this algorithm."""


class NoScheduler(Section):
    """Every trial runs to its end."""

    type: Literal["none"]
    """Selects this scheduler."""


class AshaScheduler(Section):
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934): weak trials are stopped early."""

    type: Literal["asha"]
    """Selects this scheduler."""
    grace_steps: PositiveInt
    """Steps that every trial gets; measured then, unless `run.evaluate_every` asks for it more often."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """At each rung the best 1/reduction go on; rungs are grace_steps x reduction^k."""


class PbtScheduler(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846).

    Weak trials go on from the checkpoint of a strong one, with its values mutated.
    """

    type: Literal["pbt"]
    """Selects this scheduler."""
    interval_steps: PositiveInt
    """Steps between two comparisons; each trial is measured and kept then."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the population that copies, and share that is copied from."""
    resample: Share = 0.25
    """Probability that a value is drawn anew rather than moved."""
    factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.8, 1.25)
    """A number is multiplied by one of these, and kept inside its range."""


Algorithm = Annotated[TpeAlgorithm | RandomAlgorithm | GridAlgorithm, Field(discriminator="type")]
Scheduler = Annotated[NoScheduler | AshaScheduler | PbtScheduler, Field(discriminator="type")]


class SearchSection(Section):
    """What is searched, and how."""

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """Field of the recipe, such as `run.learning_rate` or `method.rank`, and the values it may take."""
    algorithm: Algorithm = TpeAlgorithm(type="tpe")
    """Where the next trial's values come from."""
    scheduler: Scheduler = NoScheduler(type="none")
    """Which trials go on."""
    trials: PositiveInt | None = None
    """Trials in all; without it 12, or the whole grid."""
    metric: Literal["eval/loss", "eval/exact_match", "eval/rouge_l"] = "eval/loss"
    """What is compared, at a trial's last step; schedulers need `eval/loss`, which is measured on the way."""
    mode: Literal["min", "max"] = "min"
    """Whether the smallest or the largest value is the best."""
    max_concurrent: PositiveInt | None = None
    """Trials at a time; without it as many as the cluster's free resources hold."""

    @model_validator(mode="after")
    def _fits_together(self) -> SearchSection:
        if (self.metric == "eval/loss") != (self.mode == "min"):
            right = "min" if self.metric == "eval/loss" else "max"
            raise wrong("mode", self.mode, f"must be {right}: {self.metric} is better that way")
        if self.scheduler.type != "none" and self.metric != "eval/loss":
            raise wrong("metric", self.metric, f"{self.scheduler.type} compares on the way: use eval/loss")
        if self.scheduler.type == "pbt" and self.count < 2:
            raise wrong("trials", self.count, "pbt needs a population: give at least 2")
        if self.max_concurrent is not None and self.max_concurrent < self.least_at_a_time:
            fix = f"pbt trains all trials at once: leave it out, or give at least trials ({self.count})"
            raise wrong("max_concurrent", self.max_concurrent, fix)
        return self

    @property
    def count(self) -> int:
        """Trials in all."""
        if self.algorithm.type != "grid":
            return self.trials or TRIALS
        size = math.prod(len(domain.values) for domain in self.space.values() if isinstance(domain, Choice))
        return min(self.trials or size, size)

    @property
    def least_at_a_time(self) -> int:
        """Trials that must run at a time: all of a population."""
        return self.count if self.scheduler.type == "pbt" else 1

    @property
    def most_at_a_time(self) -> int:
        """Trials that run at a time when there is room."""
        return max(min(self.count, self.max_concurrent or self.count), self.least_at_a_time)

    @property
    def is_minimised(self) -> bool:
        """Whether less is better."""
        return self.mode == "min"


def _rising(section: S, low: float, high: float) -> S:
    if low >= high:
        raise wrong("high", high, f"must be above low ({low:g})")
    return section
