"""Trials that copy better ones: mutation, who learns from whom, and what is copied."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from seatrial.config.run import RunSection
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.loop import Schedule, optimizer_for
from seatrial_jobs.search import lineage
from seatrial_jobs.search.journal import Journal, Origin, Report, Trial
from seatrial_jobs.search.schedulers import Population, explore
from seatrial_jobs.search.supply import config_of
from seatrial_jobs.search.tidy import Tidier
from seatrial_jobs.storage import Storage
from tests.tune.trials import SPACE, measured, search


def test_mutation_stays_inside_the_ranges() -> None:
    wanted = search(scheduler={"type": "pbt", "interval_steps": 5, "resample": 0.3})
    assert wanted.scheduler.type == "pbt"
    values = {"run.learning_rate": 9e-2, "run.batch_rows": 2, "method.rank": 16}
    seen = set()
    for seed in range(200):
        found = explore(values, wanted.space, wanted.scheduler, random.Random(seed))  # noqa: S311
        assert 1e-5 <= found["run.learning_rate"] <= 1e-1
        assert 2 <= found["run.batch_rows"] <= 64
        assert isinstance(found["run.batch_rows"], int)
        seen.add(found["method.rank"])
    assert seen == {4, 8, 16}


class Actors:
    """Stands in Ray Tune's place: takes down which trials it was asked to pause, and their configuration."""

    def __init__(self, population: Population, journal: Journal) -> None:
        self.population, self.journal = population, journal
        self.paused: list[int] = []
        self.trials = {
            number: SimpleNamespace(config=config_of(each, "driver"))
            for number, each in journal.trials.items()
        }
        for each in self.trials.values():
            each.set_config = lambda config, each=each: setattr(each, "config", config)
            population.on_trial_add(self, each)

    def pause_trial(self, trial: Any, *, should_checkpoint: bool) -> None:
        assert not should_checkpoint
        self.paused.append(trial.config["trial"])

    def report(self, number: int, step: int, value: float) -> dict[str, Any]:
        """A measurement; the trial's configuration after it."""
        trial = self.trials[number]
        name = f"checkpoint-{step:08d}-{number:06x}"
        generation = trial.config["generation"]
        result = {"step": step, "value": value, "checkpoint": name, "generation": generation}
        decision = self.population.on_trial_result(self, trial, result)
        assert decision == ("CONTINUE" if trial.config["generation"] == generation else "NOOP")
        found = self.journal.trials[number].with_report(Report(generation, step, value, name))
        self.journal.put(found)
        return dict(trial.config)


def population(tmp_path: Path, *trials: Trial, quantile: float = 0.5) -> Actors:
    wanted = search(
        space={"run.learning_rate": SPACE["run.learning_rate"]},
        scheduler={"type": "pbt", "interval_steps": 10, "quantile": quantile},
        trials=len(trials),
    )
    journal = Journal(Storage(str(tmp_path)), {each.number: each for each in trials})

    def exploit(number: int, origin: Origin, values: dict[str, Any]) -> None:
        journal.put(journal.trials[number].with_origin(origin, values))

    return Actors(Population(wanted, journal, 0, exploit), journal)


def test_a_late_trial_goes_on_from_where_one_that_has_ended_was_at_its_step(tmp_path: Path) -> None:
    actors = population(tmp_path, measured(1, 4.0, 3.0, 2.0, 1.0, state="finished"), measured(2))
    told = actors.report(2, 10, 5.0)
    assert actors.paused == [2]
    assert told["origin"] == {
        "trial": 1,
        "generation": 1,
        "checkpoint": "checkpoint-00000010-000001",
        "step": 10,
    }
    assert told["generation"] == 2
    assert told["values"] != {"run.learning_rate": 5e-3}
    assert actors.report(2, 20, 2.5)["generation"] == 2, "by then it is the better one"
    assert actors.report(2, 30, 2.5)["origin"]["step"] == 30
    assert actors.report(2, 40, 9.0)["generation"] == 3, "at the end nobody is compared"


def test_a_trial_that_is_behind_is_compared_by_what_it_measured_last(tmp_path: Path) -> None:
    actors = population(tmp_path, measured(1, 2.0), measured(2, 5.0, 5.0))
    told = actors.report(2, 30, 5.0)
    assert told["origin"]["step"] == 10
    assert actors.report(1, 20, 1.0)["generation"] == 1
    assert actors.report(2, 20, 3.0)["origin"]["step"] == 20, "it is compared again an interval later"


def test_nobody_learns_from_the_worse_the_equal_the_failed_or_what_was_given_up(tmp_path: Path) -> None:
    failed = measured(2, 1.0, state="failed")
    origin = Origin(4, 1, "checkpoint-00000010-000004", 10)
    back = measured(3, 6.0, 0.5).with_origin(origin, {"run.learning_rate": 1e-3})
    actors = population(tmp_path, measured(1, 3.0, 3.0), failed, back, measured(4, 3.0))
    assert actors.report(4, 20, 3.0)["generation"] == 1
    assert actors.report(1, 30, 2.9)["generation"] == 1
    assert actors.report(4, 30, float("nan"))["origin"]["trial"] == 1
    assert actors.paused == [4]
    twins = population(tmp_path / "twins", measured(1, 3.0), measured(2))
    assert twins.report(2, 10, 3.0)["generation"] == 1


def test_what_a_late_trial_may_copy_stays_until_it_has_passed(tmp_path: Path) -> None:
    journal = Journal(Storage(str(tmp_path)))
    strong = measured(1, 4.0, 3.0, 2.0, 1.0, state="finished")
    theirs = journal.storage.below("trial-001-1")
    for report in strong.reports:
        checkpoint.mark(theirs, report.checkpoint, {}, heldout=report.value)
    wanted = search(scheduler={"type": "pbt", "interval_steps": 10}, trials=2)
    tidy = Tidier(journal, wanted, RunSection(steps=40, keep_checkpoints=1, keep_best_checkpoints=0))

    def left(*trials: Trial) -> list[int]:
        journal.trials = {each.number: each for each in trials}
        tidy()
        return [checkpoint.step_of(kept.name) for kept in checkpoint.complete(theirs)]

    assert left(strong) == [10, 20, 30, 40], "the other one has not begun"
    assert left(strong, measured(2)) == [10, 20, 30, 40]
    assert left(strong, measured(2, 5.0, 5.0)) == [20, 30, 40]
    assert left(strong, measured(2, 5.0, 5.0, state="failed")) == [40]


def _trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, RunSection]:
    torch.manual_seed(seed)
    run = RunSection(steps=10, learning_rate=0.1 * (seed + 1))
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = optimizer_for(model, run)
    for _ in range(3):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, run


def test_after_a_copy_weights_and_optimizer_equal_the_donors_bit_for_bit(tmp_path: Path) -> None:
    donor, donors_optimizer, donors_run = _trained(0)
    weak, weak_optimizer, run = _trained(1)
    theirs, mine = Storage(str(tmp_path / "donor")), Storage(str(tmp_path / "mine"))
    state = checkpoint.State(
        3, vars(Schedule.of(donors_run, 10)), [], [{"key": "train/loss"}], "d", heldout=1.5
    )
    folder = tmp_path / "made"
    folder.mkdir()
    name = checkpoint.name_of(3)
    checkpoint.write(folder, checkpoint.look(donor, donors_optimizer), state)
    checkpoint.mark(theirs, name, checkpoint.upload(folder, theirs, name), heldout=1.5)

    schedule = Schedule.of(run, 10)
    assert lineage.adopt(theirs, name, mine, schedule) == name
    assert lineage.digests(mine, name) == lineage.digests(theirs, name)
    found, passed_over = checkpoint.newest(mine, tmp_path)
    assert found is not None
    assert not passed_over
    restored = checkpoint.load(found, weak, weak_optimizer)
    assert restored.schedule == vars(schedule) != state.schedule
    assert (restored.step, restored.unlogged, restored.heldout) == (3, [], 1.5)
    for left, right in zip(weak.parameters(), donor.parameters(), strict=True):
        assert torch.equal(left, right)
        ours, given = weak_optimizer.state[left], donors_optimizer.state[right]
        assert ours.keys() == given.keys()
        assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(given[key])) for key in given)


def test_a_donor_that_has_moved_on_gives_the_nearest_checkpoint_that_it_has(tmp_path: Path) -> None:
    model, optimizer, run = _trained(0)
    theirs, mine = Storage(str(tmp_path / "donor")), Storage(str(tmp_path / "mine"))
    with pytest.raises(lineage.NoCheckpointError, match="it has none"):
        lineage.adopt(theirs, "checkpoint-00000003-aaaaaa", mine, Schedule.of(run, 10))
    folder = tmp_path / "made"
    folder.mkdir()
    names = {step: checkpoint.name_of(step) for step in (5, 6, 9)}
    for step, name in names.items():
        state = checkpoint.State(step, vars(Schedule.of(run, 10)), [])
        checkpoint.write(folder, checkpoint.look(model, optimizer), state)
        checkpoint.mark(theirs, name, checkpoint.upload(folder, theirs, name), heldout=None)
    assert lineage.adopt(theirs, "checkpoint-00000003-aaaaaa", mine, Schedule.of(run, 10)) == names[5]
    assert lineage.adopt(theirs, names[6], mine, Schedule.of(run, 10)) == names[6]
