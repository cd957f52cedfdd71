"""The parts of a search, each by itself: suggestions, the journal, rungs, plot, table."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seatrial.errors import SeatrialError, UserError
from seatrial_jobs.search import plot, tell
from seatrial_jobs.search.algorithms import suggest
from seatrial_jobs.search.journal import Journal, Origin, Report, Trial, best
from seatrial_jobs.search.observer import Observer
from seatrial_jobs.search.schedulers import Halving
from seatrial_jobs.search.trial import TrialFailedError, final_value
from seatrial_jobs.storage import Storage
from tests.tune.trials import SPACE, measured, search, supplied, trial


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


def test_a_trial_that_passed_a_rung_before_a_restart_is_not_judged_there_again(tmp_path: Path) -> None:
    wanted = search(scheduler={"type": "asha", "grace_steps": 10, "reduction": 2}, trials=3)
    cut_off = measured(1, 1.0)
    journal = Journal(
        Storage(str(tmp_path)),
        {1: cut_off, 2: measured(2, 0.5, state="finished"), 3: measured(3, 0.6, state="finished")},
    )
    scheduler = Halving(wanted, journal)
    scheduler.set_search_properties("value", "min")
    resumed = supplied(journal, tmp_path)
    scheduler.on_trial_add(None, resumed)
    assert scheduler.on_trial_result(None, resumed, {"step": 15, "value": 0.9}) == "CONTINUE"
    _, recorded = scheduler._brackets[0]._rungs[-1]
    assert len(recorded) == 3, "each trial counts once"


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
