"""What a search is said to take before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seatrial.config.search import SearchSection
from seatrial.config.tune import TuneRecipe
from seatrial.submission.plan import rows
from seatrial_jobs.plan import plan
from seatrial_jobs.search.forecast import forecast, most_expensive

RATES = {"type": "log_uniform", "low": 1e-4, "high": 1e-2}


def section(**given: Any) -> SearchSection:
    return SearchSection.model_validate({"space": {"run.learning_rate": RATES}, **given})


def recipe(data: Path, base: Path, space: dict[str, Any], run: dict[str, Any], **search: Any) -> TuneRecipe:
    values = {
        "name": "join-search",
        "service": "join-words",
        "data": {"train": str(data / "pairs.jsonl")},
        "model": {"base": str(base)},
        "method": {"type": "lora", "rank": 4},
        "run": {"seq_tokens": 64, "batch_rows": 8, **run},
        "resources": {"workers": 2, "device": "gpu"},
        "search": {"space": space, **search},
    }
    return TuneRecipe.model_validate(values)


def test_without_a_scheduler_that_stops_every_trial_takes_all_its_steps() -> None:
    for scheduler in ({"type": "none"}, {"type": "pbt", "interval_steps": 10}):
        found = forecast(section(trials=5, scheduler=scheduler), 40)
        assert (found.most, found.likely, found.assumption) == (200, 200, "")


def test_halving_leaves_one_in_so_many_at_each_rung() -> None:
    wanted = section(trials=9, scheduler={"type": "asha", "grace_steps": 10, "reduction": 3})
    found = forecast(wanted, 100)
    assert found.most == 900
    # 9 to step 10, 3 to step 30, 1 to step 90 and on to the end
    assert found.likely == 9 * 10 + 3 * 20 + 60 + 10
    assert found.assumption == "1 in 3 goes on at each rung of asha"
    assert forecast(wanted, 10).likely == 90


def test_the_dearest_trial_has_the_values_that_cost_most_and_go_together(data: Path, tiny_base: Path) -> None:
    space = {
        "run.steps": {"type": "choice", "values": [20, 60, 40]},
        "run.batch_rows": {"type": "choice", "values": [8, 32, 16]},
        "run.learning_rate": RATES,
        "method.rank": {"type": "int_uniform", "low": 2, "high": 64},
    }
    wanted = recipe(data, tiny_base, space, {"steps": 30})
    longest = most_expensive(wanted, lambda trial: (trial.run.steps or 0) * trial.run.batch_rows)
    assert (longest.run.steps, longest.run.batch_rows) == (60, 32)
    assert most_expensive(wanted, lambda trial: getattr(trial.method, "rank", 0)).method.rank == 64  # type: ignore[union-attr]


def test_the_plan_of_a_search_counts_all_trials_and_says_what_it_takes_for_granted(
    data: Path, tiny_base: Path
) -> None:
    space = {
        "run.steps": {"type": "choice", "values": [20, 40]},
        "method.rank": {"type": "choice", "values": [2, 8]},
    }
    asha = {"type": "asha", "grace_steps": 10, "reduction": 2}
    small = plan(recipe(data, tiny_base, space, {"steps": 20}, trials=1, scheduler=asha))
    found = plan(recipe(data, tiny_base, space, {"steps": 20}, trials=4, scheduler=asha))
    assert (found.trials, found.steps, found.all_steps, found.likely_steps) == (4, 40, 160, 80)
    assert found.estimated_s is not None
    assert small.estimated_s is not None
    assert found.memory is not None
    assert small.memory == found.memory
    shown = dict(rows(vars(found) | {"memory": vars(found.memory)}))
    assert shown["trials"] == "4, at most 160 steps in all; about 80 if 1 in 2 goes on at each rung of asha"
    assert "at most, one trial after the other" in shown["estimated"]
    assert shown["GPU-hours"].endswith(" at most")

    rates = {"run.learning_rate": RATES}
    pbt = {"type": "pbt", "interval_steps": 10}
    together = plan(recipe(data, tiny_base, rates, {"steps": 20}, trials=4, scheduler=pbt))
    shown = dict(rows(vars(together) | {"memory": None}))
    assert shown["trials"] == "4, at most 80 steps in all; 4 at a time, each with workers of its own"
