"""Documents side by side in rows of equal length, and the order in which rows are visited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from seatrial_jobs.data.chat import IGNORED, Encoded

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Packed:
    """Rows of tokens, all arrays int32; tokens, labels and positions are (R, T).

    ``position_ids`` restart at 0 with every document and with the unused tail, which is how an attention mask
    keeps documents apart. The first token of a document has no label: nothing before it belongs to it.
    """

    input_ids: Ints
    labels: Ints
    position_ids: Ints
    lines: Ints
    """Line of each document in its file, row after row, (D,)."""
    line_ends: Ints
    """Documents up to and with each row, (R,)."""
    tokens: int
    """Places that hold a document's token."""
    label_tokens: int
    """Places with a loss."""

    @property
    def rows(self) -> int:
        """R."""
        return int(self.input_ids.shape[0])

    def lines_of(self, rows: Iterable[int]) -> list[int]:
        """The lines of the file whose documents, or pieces of them, are in ``rows``."""
        starts = np.concatenate([[0], self.line_ends])
        return sorted({int(line) for row in rows for line in self.lines[starts[row] : starts[row + 1]]})

    @property
    def digest(self) -> str:
        """SHA-256 of everything that is trained on: tokens, labels and their places."""
        total = hashlib.sha256(repr(self.input_ids.shape).encode())
        for array in (self.input_ids, self.labels, self.position_ids):
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def pack(encoded: Sequence[Encoded], seq_tokens: int) -> Packed:
    """Place every document whole in a row of ``seq_tokens`` tokens, with little left over.

    Best-fit decreasing (Johnson 1973): the longest first, each into the fullest row that still has room;
    equal lengths keep their order, so the same documents always give the same rows.
    """
    placed = _assign([min(len(document.input_ids), seq_tokens) for document in encoded], seq_tokens)
    shape = (len(placed), seq_tokens)
    input_ids = np.zeros(shape, np.int32)  # (R, T)
    labels = np.full(shape, IGNORED, np.int32)  # (R, T)
    position_ids = np.zeros(shape, np.int32)  # (R, T)
    for row, documents in enumerate(placed):
        at = 0
        for document in documents:
            end = min(at + len(encoded[document].input_ids), seq_tokens)
            input_ids[row, at:end] = encoded[document].input_ids[: end - at]
            labels[row, at:end] = encoded[document].labels[: end - at]
            labels[row, at] = IGNORED
            position_ids[row, at:end] = np.arange(end - at)
            at = end
        position_ids[row, at:] = np.arange(seq_tokens - at)
    return Packed(
        input_ids,
        labels,
        position_ids,
        lines=np.array([encoded[document].line for row in placed for document in row], np.int32),
        line_ends=np.cumsum([len(row) for row in placed], dtype=np.int32),
        tokens=sum(min(len(document.input_ids), seq_tokens) for document in encoded),
        label_tokens=int((labels != IGNORED).sum()),
    )


def order(rows: int, batch_rows: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Row numbers of the batch of global step ``step`` (counted from 0), shape (batch_rows,).

    Rows are visited epoch by epoch, each epoch in a permutation of its own that ``seed`` fixes, and a batch
    may reach into the next epoch. A pure function: the step number is all that a resumed job must know.
    """
    if rows < 1:
        raise ValueError("rows must be at least 1")
    places = np.arange(step * batch_rows, (step + 1) * batch_rows)
    epochs = places // rows
    return np.array(
        [_epoch(rows, seed, int(e))[p % rows] for e, p in zip(epochs, places, strict=True)], np.int64
    )


@lru_cache(maxsize=4)
def _epoch(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    permuted = np.random.default_rng([seed & (2**64 - 1), epoch]).permutation(rows)
    permuted.setflags(write=False)
    return permuted


def _assign(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Documents of each row. ``gaps`` has bit g set while some row has exactly g free places."""
    placed: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}
    gaps = 0
    for document in sorted(range(len(lengths)), key=lambda d: -lengths[d]):
        length = lengths[document]
        if length == 0:
            continue
        fitting = gaps >> length
        if fitting:
            gap = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[gap].pop()
            if not open_rows[gap]:
                gaps ^= 1 << gap
        else:
            gap, row = room, len(placed)
            placed.append([])
        placed[row].append(document)
        open_rows.setdefault(gap - length, []).append(row)
        gaps |= 1 << (gap - length)
    return placed
