"""Planted bad rows: training that notices them goes on as if they were not there, and resumes exactly."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seatrial.config.run import RunSection
from seatrial_jobs import ledger
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.data.chat import Encoded
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.loop import Schedule, Step, optimizer_for, train
from seatrial_jobs.storage import Storage
from seatrial_jobs.watch import Watch

ALONE = Share(0, 1, torch.device("cpu"))
STEPS, BAD = 80, range(43, 51)


class Killed(Exception):  # noqa: N818
    """The process ends here."""


class Next(nn.Module):
    """Guesses a token from the one before: the smallest model that `token_loss` takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 64))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.inner(input_ids))  # (b, T, V)


def rows() -> Packed:
    """A row for each place of the job's batches: tokens in steps of 7, a fifth of them by chance."""
    chance = np.random.default_rng(0)
    tokens = (chance.integers(60, size=(8 * STEPS, 1)) + 7 * np.arange(32)) % 60
    tokens = np.where(chance.random(tokens.shape) < 0.2, chance.integers(60, size=tokens.shape), tokens)
    return pack([Encoded(ids, ids) for ids in tokens.tolist()], 32)


def with_bad_rows(packed: Packed) -> Packed:
    """All labels of a few steps' rows are one token that never follows."""
    labels = packed.labels.copy()
    for step in BAD:
        labels[Batches(packed, 8, 1, 0, ALONE).rows(step), 1:] = 63
    return replace(packed, labels=labels)


def losses(packed: Packed, place: Path, *, kill_after: int | None = None, **run: Any) -> list[float]:
    """The loss of every step from the last checkpoint on."""
    settings = RunSection(
        **{
            "steps": STEPS,
            "batch_rows": 8,
            "learning_rate": 0.3,
            "clip_norm": 1e9,
            "checkpoint_every": 10,
            **run,
        }
    )
    storage = Storage.of("job", place)
    spec: Any = SimpleNamespace(
        recipe=SimpleNamespace(run=settings),
        storage=storage,
        driver=ledger.take_over(storage, force=False).driver,
    )
    torch.manual_seed(0)
    model = Next()
    optimizer = optimizer_for(model, settings)
    schedule = Schedule.of(settings, STEPS)
    watch = Watch(spec, ALONE, model, optimizer, schedule, None, nullcontext, None)
    batches = Batches(packed, 8, 1, 0, ALONE)
    guard = watch.watch_for_spikes(settings.spikes, batches) if settings.spikes else None
    start, found = watch.restore(), []
    watch.begin(batches)

    def after_step(step: Step) -> None:
        found.append(float(step.loss))
        watch(step)
        if step.number == kill_after:
            raise Killed

    try:
        train(
            *(model, optimizer, batches, schedule),
            clip_norm=settings.clip_norm,
            guard=guard,
            start=start,
            after_step=after_step,
        )
    except Killed:
        assert watch.keeper._ended() is None  # what was under way may or may not have arrived: here it has
    return found


@pytest.mark.parametrize("action", ["skip", "rollback", "lower_lr"])
def test_training_recovers_where_it_diverges_unwatched(tmp_path: Path, action: str):
    clean = losses(rows(), tmp_path / "clean")
    unwatched = losses(with_bad_rows(rows()), tmp_path / "unwatched")
    watched = losses(
        with_bad_rows(rows()), tmp_path / "watched", spikes={"action": action, "window": 16, "threshold": 8}
    )
    after = slice(max(BAD) + 1, max(BAD) + 6)
    assert min(unwatched[after]) > 3 * max(clean[after])
    assert sum(watched[after]) < 1.2 * sum(clean[after])


@pytest.mark.parametrize("action", ["skip", "rollback", "lower_lr"])
@pytest.mark.parametrize("kill_after", [39, 41, 44, 55])
def test_a_kill_around_a_spike_changes_no_later_loss(tmp_path: Path, action: str, kill_after: int):
    spikes = {"action": action, "window": 16, "threshold": 8}
    whole = losses(with_bad_rows(rows()), tmp_path / "whole", spikes=spikes)
    first = losses(with_bad_rows(rows()), tmp_path / "cut", spikes=spikes, kill_after=kill_after)
    assert first == whole[:kill_after]
    assert losses(with_bad_rows(rows()), tmp_path / "cut", spikes=spikes) == whole[kill_after // 10 * 10 :]
