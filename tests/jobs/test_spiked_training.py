"""Planted bad rows: training that notices them goes on as if they were not there, and resumes exactly."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gangs import together
from spiked_workers import ALONE, BAD, disagreement, rows, training, with_bad_rows

from seatrial_jobs import ledger
from seatrial_jobs.batches import Batches
from seatrial_jobs.data.pack import Packed
from seatrial_jobs.storage import Storage

SPIKES = {"window": 16, "threshold": 8}


def losses(packed: Packed, place: Path, **run: Any) -> list[float]:
    return training(ALONE, packed, place, **run).losses


@pytest.mark.parametrize("action", ["skip", "rollback", "lower_lr"])
def test_training_recovers_where_it_diverges_unwatched(tmp_path: Path, action: str):
    clean = losses(rows(), tmp_path / "clean")
    unwatched = losses(with_bad_rows(rows()), tmp_path / "unwatched")
    watched = losses(with_bad_rows(rows()), tmp_path / "watched", spikes={"action": action, **SPIKES})
    after = slice(max(BAD) + 1, max(BAD) + 6)
    assert min(unwatched[after]) > 3 * max(clean[after])
    assert sum(watched[after]) < 1.2 * sum(clean[after])


@pytest.mark.parametrize("action", ["skip", "rollback", "lower_lr"])
@pytest.mark.parametrize("kill_after", [39, 41, 44, 55])
def test_a_kill_around_a_spike_changes_no_later_loss(tmp_path: Path, action: str, kill_after: int):
    spikes = {"action": action, **SPIKES}
    whole = losses(with_bad_rows(rows()), tmp_path / "whole", spikes=spikes)
    first = losses(with_bad_rows(rows()), tmp_path / "cut", spikes=spikes, kill_after=kill_after)
    assert first == whole[:kill_after]
    assert losses(with_bad_rows(rows()), tmp_path / "cut", spikes=spikes) == whole[kill_after // 10 * 10 :]


@pytest.mark.parametrize("action", ["skip", "rollback", "lower_lr", "stop"])
def test_two_workers_take_the_same_action_at_the_same_steps(tmp_path: Path, action: str):
    bad = with_bad_rows(rows())
    watched = partial(training, spikes={"action": action, **SPIKES})
    alone = watched(ALONE, bad, tmp_path / "one")
    ledger.take_over(Storage.of("job", tmp_path / "two"), force=False)
    first, second = together(2, watched, bad, tmp_path / "two")
    assert first == second, "weights, losses, decisions and events"
    assert first.losses == pytest.approx(alone.losses, abs=1e-4)
    assert [event["step"] for event in first.events] == [event["step"] for event in alone.events]
    assert {event["action"] for event in first.events} == {action}
    assert [step for step, applied in enumerate(first.applied) if not applied] == (
        [] if action == "stop" else [event["step"] - 1 for event in first.events]
    )
    batches = Batches(bad, 8, 1, 0, ALONE)
    for event in first.events:
        assert event["rows"] == batches.packed.lines_of(batches.rows(event["step"] - 1))
    assert (first.stopped is not None) == (action == "stop")


def test_a_worker_that_measures_something_else_does_as_the_first():
    settings = {"window": 16, "threshold": 8, "action": "lower_lr"}
    first, second = together(2, disagreement, settings)
    assert first == second
    allowed, events, factor = first
    assert [step for step, is_allowed in enumerate(allowed) if not is_allowed] == [20, 22, 24]
    assert [event["what"] for event in events] == ["loss", "gradient norm", "loss"]
    assert factor == 0.125
