"""Packed rows as the tensors of one worker: which rows a step sees, and how they are cut into passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from seatrial_jobs.data.chat import IGNORED
from seatrial_jobs.data.pack import Packed, order


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees; b rows of T tokens, on the worker's device."""

    input_ids: torch.Tensor  # (b, T) int64
    position_ids: torch.Tensor  # (b, T) int64, restarting at every document
    targets: torch.Tensor  # (b, T) int64, the next token, -100 where there is no loss


@dataclass(frozen=True)
class Share:
    """One worker's part of the rows: worker ``rank`` of ``size``."""

    rank: int
    size: int
    device: torch.device


class Batches:
    """The batches of every optimizer step, as a pure function of the step.

    All workers hold the same rows, so each knows the whole step's token count without asking the others.
    """

    def __init__(self, packed: Packed, batch_rows: int, accumulate: int, seed: int, share: Share) -> None:
        self.packed = packed
        self.batch_rows = batch_rows
        self.accumulate = accumulate
        self.seed = seed
        self.share = share
        self._loss_tokens = (packed.labels != IGNORED).sum(axis=1)  # (R,)
        self._tokens = packed.tokens / packed.rows

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the whole step, over all workers; shape (batch_rows,)."""
        return order(self.packed.rows, self.batch_rows, self.seed, step)

    def loss_tokens(self, step: int) -> int:
        """Tokens of the whole step that have a loss."""
        return int(self._loss_tokens[self.rows(step)].sum())

    def tokens(self) -> float:
        """Tokens of a step, padding left out; the mean over steps."""
        return self._tokens * self.batch_rows

    def at(self, step: int) -> list[Batch]:
        """This worker's passes of ``step``, ``accumulate`` of them."""
        mine = self.rows(step).reshape(self.share.size, self.accumulate, -1)[self.share.rank]
        return [to_batch(self.packed, rows, self.share.device) for rows in mine]


def every(packed: Packed, rows_at_once: int, share: Share) -> Iterator[Batch]:
    """This worker's part of all rows, in order; for measuring."""
    mine = np.arange(packed.rows)[share.rank :: share.size]
    for start in range(0, len(mine), rows_at_once):
        yield to_batch(packed, mine[start : start + rows_at_once], share.device)


def to_batch(packed: Packed, rows: np.ndarray, device: torch.device) -> Batch:
    """The rows as tensors; labels become targets, one place to the left."""
    targets = np.full((len(rows), packed.labels.shape[1]), IGNORED, np.int64)
    targets[:, :-1] = packed.labels[rows, 1:]
    arrays = (packed.input_ids[rows].astype(np.int64), packed.position_ids[rows].astype(np.int64), targets)
    return Batch(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))
