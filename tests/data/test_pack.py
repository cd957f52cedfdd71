"""Packing: every token once, documents whole and apart, and an order that the step number fixes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial_jobs.data.chat import IGNORED, Encoded
from seatrial_jobs.data.pack import Packed, order, pack

DOCUMENTS = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=40).map(
        lambda tokens: Encoded([t for t, _ in tokens], [t if learnt else IGNORED for t, learnt in tokens])
    ),
    max_size=30,
)
ARRAYS = ("input_ids", "labels", "position_ids")


def unpack(packed: Packed) -> list[tuple[list[int], list[int]]]:
    """Documents found by their positions alone; the padding tail of a row comes out as zeros."""
    found = []
    for ids, labels, positions in zip(packed.input_ids, packed.labels, packed.position_ids, strict=True):
        starts = [*np.flatnonzero(positions == 0), len(positions)]
        for start, end in pairwise(starts):
            assert positions[start:end].tolist() == list(range(end - start))
            if ids[start]:
                found.append((ids[start:end].tolist(), labels[start:end].tolist()))
            else:
                assert not ids[start:end].any()
                assert (labels[start:end] == IGNORED).all()
    return found


@given(documents=DOCUMENTS, seq_tokens=st.integers(1, 48))
def test_no_token_is_lost_positions_restart_and_labels_stay_on_their_tokens(
    documents: list[Encoded], seq_tokens: int
) -> None:
    packed = pack(documents, seq_tokens)
    expected = []
    for document in documents:
        if document.input_ids:
            ids, labels = document.input_ids[:seq_tokens], document.labels[:seq_tokens]
            expected.append((ids, [IGNORED, *labels[1:]]))
    assert sorted(unpack(packed)) == sorted(expected)
    assert packed.tokens == sum(len(ids) for ids, _ in expected) == (packed.input_ids != 0).sum()
    assert packed.label_tokens == (packed.labels != IGNORED).sum()


@given(documents=DOCUMENTS)
def test_the_same_documents_give_the_same_rows(documents: list[Encoded]) -> None:
    first, second = pack(documents, 24), pack(documents, 24)
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(second, name))
        assert getattr(first, name).dtype == np.int32
    assert first.digest == second.digest


def test_the_digest_tells_tokens_labels_and_places_apart() -> None:
    plain = pack([Encoded([5, 6, 7], [5, 6, 7]), Encoded([8, 9], [8, 9])], 8)
    others = [
        pack([Encoded([5, 6, 8], [5, 6, 7]), Encoded([8, 9], [8, 9])], 8),
        pack([Encoded([5, 6, 7], [IGNORED, 6, IGNORED]), Encoded([8, 9], [8, 9])], 8),
        pack([Encoded([5, 6, 7, 8, 9], [5, 6, 7, IGNORED, 9])], 8),
        pack([Encoded([5, 6, 7], [5, 6, 7]), Encoded([8, 9], [8, 9])], 4),
    ]
    assert len({packed.digest for packed in [plain, *others]}) == 5


@given(documents=DOCUMENTS, seq_tokens=st.integers(1, 48))
def test_a_row_knows_the_lines_of_its_documents(documents: list[Encoded], seq_tokens: int) -> None:
    lines = [replace(document, line=number) for number, document in enumerate(documents, start=1)]
    packed = pack(lines, seq_tokens)
    found = [packed.lines_of([row]) for row in range(packed.rows)]
    for row, inside in enumerate(found):
        expected = [lines[line - 1].input_ids[:seq_tokens] for line in inside]
        assert sorted(ids for ids, _ in unpack_row(packed, row)) == sorted(expected)
    assert packed.lines_of(range(packed.rows)) == sorted(line for inside in found for line in inside)


def unpack_row(packed: Packed, row: int) -> list[tuple[list[int], list[int]]]:
    return unpack(replace(packed, **{name: getattr(packed, name)[[row]] for name in ARRAYS}))


def test_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(5, 120, 3000)
    packed = pack([Encoded([1] * int(n), [1] * int(n)) for n in lengths], 256)
    assert packed.tokens / packed.input_ids.size > 0.99
    assert packed.rows == packed.input_ids.shape[0]


@given(
    rows=st.integers(1, 40),
    batch_rows=st.integers(1, 16),
    seed=st.integers(-5, 2**40),
    epoch=st.integers(0, 3),
)
def test_an_epoch_visits_every_row_once(rows: int, batch_rows: int, seed: int, epoch: int) -> None:
    steps = -(-(epoch + 1) * rows // batch_rows)
    visited = np.concatenate([order(rows, batch_rows, seed, step) for step in range(steps)])
    assert sorted(visited[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))


ORDER = """
from seatrial_jobs.data.pack import order
print([order(1000, 8, 7, step).tolist() for step in (124, 125, 10**6)])
"""


def test_the_order_of_a_step_is_the_same_in_a_process_that_saw_no_step_before_it() -> None:
    walked = {step: order(1000, 8, 7, step).tolist() for step in [*range(126), 10**6]}
    fresh = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True, check=True)
    assert json.loads(fresh.stdout) == [walked[step] for step in (124, 125, 10**6)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    assert order(100, 100, 0, 0).tolist() != order(100, 100, 0, 1).tolist()
    assert order(100, 100, 0, 0).tolist() != order(100, 100, 1, 0).tolist()


def test_no_rows_have_no_order() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1"):
        order(0, 1, 0, 0)
