"""Random documents in rows, the same for both sides."""

from __future__ import annotations

import numpy as np

from seatrial_jobs.data.chat import Encoded
from seatrial_jobs.data.pack import Packed, pack


def rows(vocabulary: int, seq_tokens: int, count: int, *, packing: bool) -> tuple[Packed, list[int]]:
    """At least ``count`` rows and the lengths of their documents.

    With packing they have a sixteenth of a row to half of one; without it each fills its row.
    """
    chance = np.random.default_rng(0)
    if packing:
        lengths = chance.integers(max(seq_tokens // 16, 2), seq_tokens // 2, count * 4).tolist()
    else:
        lengths = [seq_tokens] * count
    documents = [chance.integers(6, vocabulary, length).tolist() for length in lengths]
    return pack([Encoded(ids, list(ids)) for ids in documents], seq_tokens), lengths
