"""Room for trials: what the cluster holds, and who waits for it."""

from __future__ import annotations

import pytest

from seatrial.config.jobs import JobsConfig
from seatrial.config.tune import TuneRecipe
from seatrial.errors import UserError
from seatrial_jobs.search.room import await_room, each_trial, grown, room
from tests.tune.trials import SPACE, search


def test_room_is_what_the_free_resources_hold() -> None:
    assert room({"CPU": 7.9}, {"CPU": 2.0}, None) == 3
    assert room({"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}, None) == 1
    assert room({"CPU": 8.0}, {"CPU": 2.0}, 2) == 2
    assert room({"CPU": 0.5}, {"CPU": 2.0}, None) == 1


def test_a_population_waits_for_room_that_another_job_gives_back(capsys: pytest.CaptureFixture[str]) -> None:
    population = search(scheduler={"type": "pbt", "interval_steps": 5}, trials=4)
    each, everything = {"CPU": 2.0}, {"CPU": 8.0}
    frees = iter([{"CPU": 6.0}, {"CPU": 7.0}, {"CPU": 8.0}])
    assert await_room(population, each, everything, lambda: next(frees)) == 4
    assert "3 of 4 trials fit" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"left room for 3 in 0.1 s: .* through the queue"):
        await_room(population, each, everything, lambda: {"CPU": 6.0}, wait_s=0.1)


def test_a_population_that_the_cluster_cannot_hold_is_refused_at_once() -> None:
    population = search(scheduler={"type": "pbt", "interval_steps": 5}, trials=4)
    with pytest.raises(UserError, match=r"the cluster has room for 3: .* larger cluster"):
        await_room(population, {"CPU": 2.0}, {"CPU": 6.0}, dict)


def test_a_population_that_an_autoscaler_makes_room_for_starts_so_that_it_does() -> None:
    population = search(scheduler={"type": "pbt", "interval_steps": 5}, trials=4)
    each, now = {"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0}
    limits = JobsConfig.model_validate({"grows_to": {"cpus": 64, "gpus": 4}})
    assert await_room(population, each, now, lambda: now, grows_to=grown(limits)) == 4
    fewer = JobsConfig.model_validate({"grows_to": {"cpus": 64, "gpus": 3}})
    with pytest.raises(UserError, match="larger cluster"):
        await_room(population, each, now, lambda: now, grows_to=grown(fewer))


@pytest.mark.parametrize(("scheduler", "cpus"), [("pbt", 2.0), ("none", 8.0)])
def test_an_elastic_population_starts_with_the_fewest_workers_as_the_queue_counts(
    scheduler: str, cpus: float
) -> None:
    chosen = {"type": scheduler, **({"interval_steps": 5} if scheduler == "pbt" else {})}
    recipe = TuneRecipe.model_validate(
        {
            "name": "x",
            "service": "x",
            "data": {"train": "x.jsonl"},
            "model": {"base": "./b"},
            "method": {"type": "lora"},
            "run": {"steps": 20, "batch_rows": 8},
            "resources": {"workers": [1, 4], "cpus_per_worker": 2.0},
            "search": {"space": {"run.learning_rate": SPACE["run.learning_rate"]}, "scheduler": chosen},
        }
    )
    assert each_trial(recipe, {"CPU": 8.0}) == {"CPU": cpus}


def test_another_search_takes_the_room_that_there_is() -> None:
    assert await_room(search(trials=4), {"CPU": 2.0}, {"CPU": 8.0}, lambda: {"CPU": 4.0}) == 2
