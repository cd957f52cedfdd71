"""The parts of a search, each by itself: suggestions, the journal, mutation, copies, room, plot, table."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from seatrial.config.jobs import JobsConfig
from seatrial.config.run import RunSection
from seatrial.config.search import SearchSection
from seatrial.config.tune import TuneRecipe
from seatrial.errors import SeatrialError, UserError
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.loop import Schedule, optimizer_for
from seatrial_jobs.search import lineage, plot, tell
from seatrial_jobs.search.algorithms import suggest
from seatrial_jobs.search.journal import Generation, Journal, Origin, Report, Trial, best
from seatrial_jobs.search.observer import Observer
from seatrial_jobs.search.room import await_room, each_trial, grown, room
from seatrial_jobs.search.schedulers import Halving, Population, explore
from seatrial_jobs.search.supply import config_of
from seatrial_jobs.search.tidy import Tidier
from seatrial_jobs.search.trial import TrialFailedError, final_value
from seatrial_jobs.storage import Storage

SPACE = {
    "run.learning_rate": {"type": "log_uniform", "low": 1e-5, "high": 1e-1},
    "run.batch_rows": {"type": "int_uniform", "low": 2, "high": 64},
    "method.rank": {"type": "choice", "values": [4, 8, 16]},
}


def search(**given: Any) -> SearchSection:
    return SearchSection.model_validate({"space": SPACE, **given})


def trial(number: int, value: float | None = None, **given: Any) -> Trial:
    values = given.pop("values", {"run.learning_rate": 1e-3, "run.batch_rows": 8, "method.rank": 8})
    reports = () if value is None else (Report(1, 20, value, "checkpoint-00000020-abcdef"),)
    state = "running" if value is None else "finished"
    return Trial(
        number, 20, f"run{number}", (Generation(values),), **{"state": state, **given}, reports=reports
    )


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_the_same_trials_give_the_same_suggestion_and_others_another(algorithm: str) -> None:
    wanted = search(algorithm={"type": algorithm})
    before = {1: trial(1, 1.0)}
    first, again = (suggest(wanted, before, 0) for _ in range(2))
    assert first == again
    assert suggest(wanted, {**before, 2: trial(2)}, 0) != first
    assert suggest(wanted, before, 1) != first
    assert 1e-5 <= first["run.learning_rate"] <= 1e-1
    assert first["method.rank"] in (4, 8, 16)


def test_a_grid_is_gone_through_once() -> None:
    space = {name: {"type": "choice", "values": values} for name, values in (("a", [1, 2]), ("b", [3, 4, 5]))}
    wanted = search(space=space, algorithm={"type": "grid"})
    known: dict[int, Trial] = {}
    for number in range(1, wanted.count + 1):
        known[number] = trial(number, values=suggest(wanted, known, 0))
    found = {tuple(each.values.values()) for each in known.values()}
    assert found == {(a, b) for a in (1, 2) for b in (3, 4, 5)}


def test_tpe_learns_where_the_good_values_are() -> None:
    wanted = search(space={"x": {"type": "uniform", "low": -1, "high": 1}}, algorithm={"type": "tpe"})
    known: dict[int, Trial] = {}
    for number in range(1, 41):
        x = suggest(wanted, known, 0)["x"]
        known[number] = trial(number, (x - 0.5) ** 2, values={"x": x})
    late = [known[number].values["x"] for number in range(31, 41)]
    assert sum(abs(x - 0.5) < 0.25 for x in late) >= 7  # by chance it would be 2 or 3


def test_the_journal_reads_what_it_wrote(tmp_path: Path) -> None:
    journal = Journal(Storage(str(tmp_path)))
    origin = Origin(1, 1, "checkpoint-00000010-abcdef", 10)
    journal.put(trial(1, 2.0))
    journal.put(
        trial(2)
        .with_origin(origin, {"run.learning_rate": 2e-3})
        .with_report(Report(2, 20, 1.5, "checkpoint-00000020-abcdef"))
    )
    assert Journal.read(Storage(str(tmp_path))).trials == journal.trials
    (tmp_path / "trials.json").write_text("[{")
    with pytest.raises(UserError, match="damaged"):
        Journal.read(Storage(str(tmp_path)))


def test_a_search_that_failed_is_tried_again_but_not_what_has_come_to_an_end(tmp_path: Path) -> None:
    def states(*trials: Trial, count: int) -> list[str]:
        journal = Journal(Storage(str(tmp_path / str(len(list(tmp_path.iterdir()))))))
        for each in trials:
            journal.put(each)
        journal.try_again(count, is_minimised=True)
        return [each.state for each in Journal.read(journal.storage).trials.values()]

    failed, stopped = trial(1, state="failed", cause="no room"), trial(2, 3.0, state="stopped")
    assert states(failed, stopped, count=2) == ["running", "stopped"]
    assert states(failed, trial(2, 3.0, state="finished"), count=2) == ["failed", "finished"]
    assert states(failed, trial(2), count=2) == ["failed", "running"], "it goes on as it is"
    assert states(failed, stopped, count=3) == ["failed", "stopped"], "another is still to come"


def test_a_report_that_comes_again_after_a_resume_is_kept_once() -> None:
    found = trial(1)
    for step, value in ((10, 3.0), (20, 2.0), (10, 3.0), (20, 2.5)):
        found = found.with_report(Report(1, step, value, f"checkpoint-{step:08d}-abcdef"))
    assert [(report.step, report.value) for report in found.reports] == [(10, 3.0), (20, 2.5)]


def test_the_best_is_one_that_came_to_its_end() -> None:
    known = {1: trial(1, 2.0), 2: trial(2, 1.0, state="stopped"), 3: trial(3, 1.5), 4: trial(4, 1.5)}
    winner = best(known, is_minimised=True)
    assert winner is not None
    assert winner.number == 3
    assert best({2: known[2]}, is_minimised=True) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_neither_wins_nor_leads_the_search(value: float) -> None:
    known = {1: trial(1, value), 2: trial(2, 3.0)}
    for is_minimised in (True, False):
        winner = best(known, is_minimised=is_minimised)
        assert winner is not None
        assert winner.number == 2
    assert best({1: known[1]}, is_minimised=True) is None
    tpe = search(algorithm={"type": "tpe", "startup_trials": 1})
    assert suggest(tpe, known, 7) == suggest(
        tpe, {**known, 1: replace(known[1], state="failed", reports=())}, 7
    )
    with pytest.raises(TrialFailedError, match="which is no measurement"):
        final_value({"scores": {"loss": value}}, "eval/loss")


def test_storage_that_is_away_is_told_by_its_name_though_tune_hands_on_text_alone(tmp_path: Path) -> None:
    place = tmp_path / "search"
    place.mkdir()
    faults: list[SeatrialError] = []
    journal = Journal(Storage(str(place)), {1: trial(1)})
    teller = tell.Teller(journal, search(), 20)
    observer = Observer(journal, teller, "http://127.0.0.1:9", lambda: None, lambda: None, faults)
    shutil.rmtree(place)
    place.write_text("a file where the folder was")
    told: Any = SimpleNamespace(config={"trial": 1})
    result = {"generation": 1, "step": 10, "value": 1.0, "checkpoint": "checkpoint-00000010-abcdef"}
    with pytest.raises(UserError, match=r"run\.storage: .*search: cannot be used"):
        observer.on_trial_result(0, [], told, result)
    assert [type(each) for each in faults] == [UserError]


def test_rungs_remember_the_trials_from_before_a_restart(tmp_path: Path) -> None:
    wanted = search(scheduler={"type": "asha", "grace_steps": 10, "reduction": 2})
    journal = Journal(Storage(str(tmp_path)), {1: trial(1, 1.0)})
    fresh, resumed = (
        Halving(wanted, each) for each in (Journal(Storage(str(tmp_path))), journal)
    )  # fmt: skip
    decisions = []
    for scheduler in (fresh, resumed):
        scheduler.set_search_properties("value", "min")
        late: Any = SimpleNamespace(trial_id="002")
        scheduler.on_trial_add(None, late)
        decisions.append(scheduler.on_trial_result(None, late, {"step": 20, "value": 9.0}))
    assert decisions == ["CONTINUE", "STOP"]


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


def measured(number: int, *values: float, every: int = 10, **given: Any) -> Trial:
    """A trial of 40 steps that was measured every so many, with a checkpoint each time."""
    reports = tuple(
        Report(1, step, value, f"checkpoint-{step:08d}-{number:06x}")
        for step, value in zip(range(every, 41, every), values, strict=False)
    )
    values_of = {"run.learning_rate": 1e-2 / number}
    return Trial(number, 40, f"run{number}", (Generation(values_of),), reports=reports, **given)


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


def test_time_left_follows_the_rate_so_far() -> None:
    assert tell.time_left_s((100.0, 20), (110.0, 40), 100) == 30.0
    assert tell.time_left_s((100.0, 20), (110.0, 20), 100) is None


def test_the_table_has_a_row_for_each_trial_under_one_header() -> None:
    origin = Origin(1, 1, "checkpoint-00000010-abcdef", 10)
    rows = tell.table(
        [trial(1, 2.0), trial(2).with_origin(origin, trial(1).values)], list(SPACE), "eval/loss"
    )
    shown = tell.lines(rows)
    assert shown[0].split() == ["trial", "state", "steps", "eval/loss", "from", *SPACE]
    assert shown[1].split() == ["1", "finished", "20", "2.0000", "0.001", "8", "8"]
    assert shown[2].split() == ["2", "running", "0", "1", "0.001", "8", "8"]


def test_the_picture_shows_every_trial_and_every_field(tmp_path: Path) -> None:
    wanted = search()
    origin = Origin(1, 1, "checkpoint-00000020-abcdef", 20)
    trials = [
        trial(1, 2.0),
        trial(2, 2.5).with_origin(origin, trial(1).values),
        trial(3, 3.0, state="stopped"),
        trial(4),
    ]
    figure = plot.trials_picture("join-search", trials, 1, wanted.space, "eval/loss")
    figure.savefig(tmp_path / "trials.png")
    axes = [axes for part in figure.subfigs for axes in part.axes]
    assert [each.get_xlabel() for each in axes] == ["step", *SPACE]
    assert {text.get_text() for text in axes[0].texts} == {"1", "2", "3"}
    assert all(len(each.collections[0].get_offsets()) == 3 for each in axes[1:])
