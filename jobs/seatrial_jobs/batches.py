"""Packed rows as the tensors of one worker: which rows a step sees, and how they are cut into passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from seatrial_jobs.data.chat import IGNORED
from seatrial_jobs.data.pack import Packed, order

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees; b rows of T tokens, on the worker's device."""

    input_ids: torch.Tensor  # (b, T) int64
    targets: torch.Tensor  # (b, T) int64, the next token, -100 where there is no loss
    position_ids: torch.Tensor | None  # (b, T) int64, restarting at every document; None: one in each row


@dataclass(frozen=True)
class Share:
    """One worker's part of the rows: worker ``rank`` of ``size``."""

    rank: int
    size: int
    device: torch.device

    def exchange(self, mine: T) -> list[T]:
        """What each worker says, by rank; all must ask."""
        if self.size == 1:
            return [mine]
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, mine)
        return said


class Batches:
    """The batches of every optimizer step, as a pure function of the step.

    All workers hold the same rows, so each knows the whole step's token count without asking the others.
    ``apart`` is for models that would let the documents of a row see each other: the same documents make up
    every step, but each has a row of the tensors to itself. ``fewest`` workers would see ``accumulate``
    passes of a step; more workers see smaller passes or fewer of them, and none of them larger ones.
    """

    def __init__(
        self,
        packed: Packed,
        batch_rows: int,
        accumulate: int,
        seed: int,
        share: Share,
        *,
        fewest: int | None = None,
        apart: bool = False,
    ) -> None:
        self.packed = packed
        self.batch_rows = batch_rows
        self.accumulate = accumulate
        self.seed = seed
        self.share = share
        self.apart = apart
        self.rows_at_once = rows_at_once(batch_rows, accumulate, fewest or share.size)
        self._loss_tokens = (packed.labels != IGNORED).sum(axis=1)  # (R,)
        self._tokens = packed.tokens / packed.rows

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the whole step, over all workers; shape (batch_rows,)."""
        return order(self.packed.rows, self.batch_rows, self.seed, step)

    def lines(self, step: int) -> list[int]:
        """Lines of the training file that the whole step learns from."""
        return self.packed.lines_of(self.rows(step))

    def loss_tokens(self, step: int) -> int:
        """Tokens of the whole step that have a loss."""
        return int(self._loss_tokens[self.rows(step)].sum())

    def tokens(self) -> float:
        """Tokens of a step, padding left out; the mean over steps."""
        return self._tokens * self.batch_rows

    def at(self, step: int) -> list[Batch]:
        """This worker's passes of ``step``; every worker has as many."""
        cuts = cut(self.rows(step), self.share.size, self.rows_at_once)
        parts = zip(*cuts, strict=True)
        return [batch for part in parts for batch in _batches(self.packed, part, self.share, self.apart)]


def rows_at_once(batch_rows: int, accumulate: int, workers: int) -> int:
    """Rows of the largest pass when so many workers share a step's rows in ``accumulate`` passes each."""
    return max(-(-batch_rows // (workers * accumulate)), 1)


def cut(rows: np.ndarray, workers: int, at_once: int) -> list[list[np.ndarray]]:
    """The rows of each pass of each worker, in order and as even as can be: by worker, then by pass.

    All workers have the same number of passes, none of more than ``at_once`` rows; some may have no row.
    """
    shares = np.array_split(rows, workers)  # the first is the largest
    passes = -(-len(shares[0]) // at_once)
    return [np.array_split(mine, passes) for mine in shares]


def every(packed: Packed, at_once: int, share: Share, *, apart: bool = False) -> Iterator[Batch]:
    """This worker's part of all rows, in order, in as many batches as every worker has; for measuring."""
    shares = [np.arange(packed.rows)[rank :: share.size] for rank in range(share.size)]
    for start in range(0, len(shares[0]), at_once):
        yield from _batches(packed, [mine[start : start + at_once] for mine in shares], share, apart)


def _batches(packed: Packed, parts: Sequence[np.ndarray], share: Share, apart: bool) -> list[Batch]:
    """This worker's batches of the rows in ``parts``, by worker.

    As many as any other worker has: models that are spread over the workers exchange in each.
    """
    mine = parts[share.rank]
    if not apart:
        return [to_batch(packed, mine, share.device) if len(mine) else idle(packed, share.device)]
    passes = [taken_apart(packed, rows) for rows in parts]
    found = [_padded(packed, chosen, share.device) for chosen in passes[share.rank]]
    return found + [idle(packed, share.device)] * (max(map(len, passes)) - len(found))


def idle(packed: Packed, device: torch.device) -> Batch:
    """A row without targets: its loss and its gradient are zero."""
    row = to_batch(packed, np.zeros(1, np.int64), device)
    return Batch(row.input_ids, torch.full_like(row.targets, IGNORED), None)


def to_batch(packed: Packed, rows: np.ndarray, device: torch.device) -> Batch:
    """The rows as tensors; labels become targets, one place to the left."""
    targets = np.full((len(rows), packed.labels.shape[1]), IGNORED, np.int64)
    targets[:, :-1] = packed.labels[rows, 1:]
    ids, places = packed.input_ids[rows].astype(np.int64), packed.position_ids[rows].astype(np.int64)
    tensors = [torch.from_numpy(array).to(device, non_blocking=True) for array in (ids, targets, places)]
    # Without positions, attention needs no mask of its own, and the fastest kernels take none.
    return Batch(tensors[0], tensors[1], tensors[2] if (places[:, 1:] == 0).any() else None)


Document = tuple[int, slice]
"""A document's row and its place there."""


def taken_apart(packed: Packed, rows: np.ndarray) -> list[list[Document]]:
    """The documents of the rows by pass; in its tensors each has a row, padded at the end, the longest first.

    A pass has no more places than the packed rows have, so it takes no more memory; there are more passes.
    """
    found = [document for row in rows for document in documents(packed, int(row))]
    learnt = [d for d in found if (packed.labels[d] != IGNORED).any()] or found[:1]
    learnt.sort(key=lambda d: d[1].start - d[1].stop)
    room = packed.input_ids.shape[1] * len(rows)
    passes = []
    while learnt:
        count = max(room // _length(learnt[0]), 1)
        passes.append(learnt[:count])
        learnt = learnt[count:]
    return passes


def _length(document: Document) -> int:
    return document[1].stop - document[1].start


def documents(packed: Packed, row: int) -> list[Document]:
    """Where the documents of a row are; its unused tail is one of them."""
    starts = [*np.flatnonzero(packed.position_ids[row] == 0).tolist(), packed.position_ids.shape[1]]
    return [(row, slice(start, stop)) for start, stop in pairwise(starts)]


def _padded(packed: Packed, chosen: Sequence[Document], device: torch.device) -> Batch:
    longest = _length(chosen[0])
    input_ids = np.zeros((len(chosen), longest), np.int64)  # (b, T)
    targets = np.full((len(chosen), longest), IGNORED, np.int64)  # (b, T)
    for at, (row, place) in enumerate(chosen):
        length = _length((row, place))
        input_ids[at, :length] = packed.input_ids[row, place]
        targets[at, : length - 1] = packed.labels[row, place][1:]
    tensors = [torch.from_numpy(array).to(device, non_blocking=True) for array in (input_ids, targets)]
    return Batch(tensors[0], tensors[1], None)
