"""What a worker does in the tests of spikes: a small training on rows of which a few steps' make no sense."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from seatrial.config.run import RunSection, SpikesSection
from seatrial_jobs import ledger
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.checkpoints.checkpoint import plain
from seatrial_jobs.checkpoints.keeper import Keeper
from seatrial_jobs.data.chat import Encoded
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.loop import Schedule, Step, optimizer_for, train
from seatrial_jobs.spec import HopelessError
from seatrial_jobs.storage import Storage
from seatrial_jobs.workers.guard import Guard
from seatrial_jobs.workers.watch import Watch

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


@dataclass
class Found:
    """What a worker saw."""

    losses: list[float] = field(default_factory=list)
    """Of every step from the last checkpoint on."""
    applied: list[bool] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    factor: float = 1.0
    weights: str = ""
    """Their digest at the end."""
    stopped: str | None = None


def rows() -> Packed:
    """A row for each place of the job's batches: tokens in steps of 7, a fifth of them by chance."""
    chance = np.random.default_rng(0)
    tokens = (chance.integers(60, size=(8 * STEPS, 1)) + 7 * np.arange(32)) % 60
    tokens = np.where(chance.random(tokens.shape) < 0.2, chance.integers(60, size=tokens.shape), tokens)
    return pack([Encoded(ids, ids, line=at) for at, ids in enumerate(tokens.tolist(), start=1)], 32)


def with_bad_rows(packed: Packed) -> Packed:
    """All labels of a few steps' rows are one token that never follows."""
    labels = packed.labels.copy()
    for step in BAD:
        labels[Batches(packed, 8, 1, 0, ALONE).rows(step), 1:] = 63
    return replace(packed, labels=labels)


def training(
    share: Share, packed: Packed, place: Path, *, kill_after: int | None = None, **run: Any
) -> Found:
    """Train on ``packed`` from the last checkpoint in ``place``."""
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
    torch.manual_seed(0)
    model: nn.Module = Next()
    if share.size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer, schedule = optimizer_for(model, settings), Schedule.of(settings, STEPS)
    keeper = Keeper(_spec(place, settings), share, model, optimizer, schedule, None)
    watch = Watch(keeper, None, nullcontext)
    batches = Batches(packed, 8, 1, 0, share)
    guard = watch.watch_for_spikes(settings.spikes, batches) if settings.spikes else None
    start, found = watch.restore(), Found()
    watch.begin(batches)

    def after_step(step: Step) -> None:
        found.losses.append(float(step.loss))
        found.applied.append(step.applied)
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
    except HopelessError as reason:
        found.stopped = str(reason)
    if guard is not None:
        found.events, found.factor = guard.events, guard.factor
    found.weights = _digest(plain(model))
    return found


def _spec(place: Path, settings: RunSection) -> Any:
    storage = Storage.of("job", place)
    owner = ledger.read(storage) or ledger.take_over(storage, force=False)
    return SimpleNamespace(
        recipe=SimpleNamespace(run=settings), storage=storage, driver=owner.driver, tidies=True
    )


def _digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for weights in model.parameters():
        total.update(weights.detach().numpy().tobytes())
    return total.hexdigest()


def disagreement(share: Share, settings: dict[str, Any]) -> tuple[list[bool], list[Any], float]:
    """A guard whose worker measures a little else than the first: across the threshold, and no number."""
    guard = Guard(
        SpikesSection.model_validate(settings), lambda step: [step], lambda: None, print, share.size
    )
    mine = [(2.0 + 0.01 * (step % 5), 1.0) for step in range(20)]
    mine += [(3.4, 1.0), (2.0, 1.0), (2.0, 9.0)] if share.rank == 0 else [(2.0, 1.0), (9.0, 1.0), (2.0, 1.0)]
    mine += [(2.0, 1.0), (float("nan"), 1.0)] if share.rank == 0 else [(float("nan"), 1.0), (2.0, 1.0)]
    allowed = [
        guard.allows(step, torch.tensor(loss), torch.tensor(norm)) for step, (loss, norm) in enumerate(mine)
    ]
    return allowed, guard.events, guard.factor
