"""What a search will take at most, and what its scheduler will leave of that. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from seatrial.config.recipe import TrainRecipe
from seatrial.config.search import Choice, SearchSection
from seatrial.config.tune import TuneRecipe


@dataclass(frozen=True)
class Forecast:
    """Optimizer steps of all trials together."""

    most: int
    """If every trial is as long as the longest can be, and none is stopped."""
    likely: int
    """If the scheduler stops as many as its settings say."""
    assumption: str
    """What ``likely`` takes for granted; empty when it is ``most``."""


def forecast(search: SearchSection, steps: int) -> Forecast:
    """The steps of a search whose longest trial has ``steps``."""
    most, chosen = search.count * steps, search.scheduler
    if chosen.type != "asha" or chosen.grace_steps >= steps:
        return Forecast(most, most, "")
    alive, since, likely, rung = search.count, 0, 0, chosen.grace_steps
    while rung < steps:
        likely += alive * (rung - since)
        alive, since = math.ceil(alive / chosen.reduction), rung
        rung = math.ceil(rung * chosen.reduction)
    likely += alive * (steps - since)
    return Forecast(most, likely, f"1 in {chosen.reduction:g} goes on at each rung of asha")


def most_expensive(recipe: TuneRecipe, cost: Callable[[TrainRecipe], float]) -> TrainRecipe:
    """The trial that ``cost`` finds the most expensive, of the ends of every field's range.

    Fields are looked at one by one, the dearest value of each being kept for the next.
    """
    values: dict[str, object] = {}
    found = recipe.with_values(values)
    for path, domain in recipe.search.space.items():
        ends = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
        trials = [(value, _with(recipe, {**values, path: value})) for value in ends]
        tried = [(cost(trial), value, trial) for value, trial in trials if trial is not None]
        if tried:
            _, values[path], found = max(tried, key=lambda each: each[0])
    return found


def _with(recipe: TuneRecipe, values: dict[str, object]) -> TrainRecipe | None:
    """``None`` for values that do not go together, of which there will be no trial."""
    try:
        return recipe.with_values(values)
    except ValidationError:
        return None
