"""Searches: every path is a field of the recipe, every value one that the field takes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from seatrial.config.load import loads
from seatrial.config.tune import TuneRecipe
from seatrial.errors import ConfigError

RECIPE = """\
name: join-words
service: join-words
data: {train: pairs.jsonl}
model: {base: base}
method: {type: lora, rank: 4}
run: {steps: 20, batch_rows: 8}
resources: {workers: 2}
search:
  trials: 4
"""


def problems(search: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(RECIPE + search, TuneRecipe, file="r.yaml")
    return str(caught.value).splitlines()


def recipe(**search: Any) -> TuneRecipe:
    values = yaml.safe_load(RECIPE)
    return loads(yaml.safe_dump({**values, "search": search}), TuneRecipe)


def test_every_wrong_entry_is_told_at_once_with_its_line() -> None:
    found = problems("""\
  space:
    run.lerning_rate: {type: log_uniform, low: 1e-4, high: 1e-2}
    run.storage: {type: choice, values: [a]}
    method.rank:
      type: choice
      values: [4, eight, -2]
    run.batch_rows: {type: uniform, low: 8, high: 16}
    method.alpha: {type: uniform, low: 18, high: 16}
    method.dropout: {type: uniform, low: 0, high: 2}
  scheduler: {type: asha, grace_step: 3}
""")
    told = {line.split(":")[1] + ":" + line.split(":")[2].strip() for line in found}
    assert told == {
        "11:search.space.run.lerning_rate",
        "12:search.space.run.storage",
        "15:search.space.method.rank.values.1",
        "15:search.space.method.rank.values.2",
        "16:search.space.run.batch_rows.type",
        "17:search.space.method.alpha.high",
        "18:search.space.method.dropout.high",
        "19:search.scheduler.grace_step",
        "19:search.scheduler.grace_steps",
    }
    assert "did you mean `run.learning_rate`?" in found[0]
    assert any("use int_uniform or choice" in line for line in found)


def test_a_rule_over_several_fields_holds_for_every_value() -> None:
    found = problems("  space: {run.batch_rows: {type: choice, values: [8, 9]}}\n")
    assert found == [
        "r.yaml:10: search.space.run.batch_rows.values.1: 9: must be a multiple of "
        "resources.workers x run.accumulate (2)"
    ]


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("  space: {run.learning_rate: {type: uniform, low: 1e-4, high: 1}}\n  mode: max\n", "must be min"),
        (
            "  space: {run.learning_rate: {type: uniform, low: 1e-4, high: 1}}\n"
            "  metric: eval/rouge_l\n  mode: max\n  scheduler: {type: asha, grace_steps: 5}\n",
            "use eval/loss",
        ),
        (
            "  space: {method.rank: {type: choice, values: [4]}}\n"
            "  scheduler: {type: pbt, interval_steps: 5}\n",
            "pbt carries weights on",
        ),
        (
            "  space: {run.learning_rate: {type: uniform, low: 1e-4, high: 1}}\n  algorithm: {type: grid}\n",
            "grid takes `type: choice`",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(search: str, said: str) -> None:
    assert any(said in line for line in problems(search))


def test_a_population_that_may_not_train_at_once_is_refused() -> None:
    said = """\
  space: {run.learning_rate: {type: log_uniform, low: 1.0e-4, high: 1.0e-2}}
  scheduler: {type: pbt, interval_steps: 5}
  max_concurrent: 3
"""
    assert problems(said) == [
        "r.yaml:12: search.max_concurrent: 3: pbt trains all trials at once: leave it out, "
        "or give at least trials (4)"
    ]


def test_listed_values_get_the_type_of_their_field() -> None:
    made = recipe(space={"run.learning_rate": {"type": "choice", "values": ["1e-3", 1]}})
    [domain] = made.search.space.values()
    assert domain.model_dump()["values"] == (1e-3, 1.0)


def test_a_trial_is_the_recipe_with_its_values_measured_where_the_scheduler_compares() -> None:
    space = {"run.learning_rate": {"type": "uniform", "low": 0.1, "high": 1}}
    made = recipe(space=space, scheduler={"type": "pbt", "interval_steps": 5})
    trial = made.with_values({"run.learning_rate": 0.5})
    assert trial.run.learning_rate == 0.5
    assert (trial.run.evaluate_every, trial.run.checkpoint_every) == (5, 5)
    assert trial.method == made.method


def test_a_grid_has_as_many_trials_as_combinations() -> None:
    space = {"method.rank": {"type": "choice", "values": [2, 4, 8]}}
    space["method.alpha"] = {"type": "choice", "values": [8, 16]}
    assert recipe(space=space, algorithm={"type": "grid"}).search.count == 6
    assert recipe(space=space, algorithm={"type": "grid"}, trials=4).search.count == 4
    assert recipe(space=space).search.count == 12
