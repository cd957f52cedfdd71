"""Does packing change what this model answers? Asked once, of the model itself, before it is trained.

Most decoders of `transformers` keep the documents of a row apart when positions restart. Some do not read
positions at all (OPT, Bloom, MPT), others mask by something else or carry a state along the row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from seatrial_jobs.batches import documents
from seatrial_jobs.data.pack import Packed
from seatrial_jobs.sharding import looking

DOCUMENT_TOKENS = 24
TOLERANCE = {torch.float32: 1e-4}
ROUGH_TOLERANCE = 0.05
"""Of 16-bit weights: rounding alone comes to 0.006 to 0.026 in 28 layers, mixed documents to 0.5."""


def keeps_apart(model: nn.Module, packed: Packed, device: torch.device) -> bool:
    """Whether two documents in one row get the logits that each gets alone; true when no row has two.

    In the arithmetic of the weights, which is sharper than that of mixed-precision training.
    """
    found = _two_documents(packed)
    if found is None:
        return True
    first, second = (torch.from_numpy(ids.astype(np.int64)).to(device) for ids in found)
    positions = torch.cat([torch.arange(len(ids), device=device) for ids in (first, second)])[None]
    with looking(model):
        each = [model(input_ids=ids[None], use_cache=False).logits for ids in (first, second)]
        alone = torch.cat(each, 1)  # (1, T, V)
        together = _packed_logits(model, torch.cat([first, second])[None], positions)
    return together is not None and _distance(together, alone) < TOLERANCE.get(alone.dtype, ROUGH_TOLERANCE)


def _two_documents(packed: Packed) -> tuple[Any, Any] | None:
    """The beginnings of the first two documents that share a row."""
    for row in range(packed.rows):
        places = [place for _, place in documents(packed, row)][:2]
        ids = [packed.input_ids[row, place][:DOCUMENT_TOKENS] for place in places]
        if len(ids) == 2 and ids[1].any():  # else the second is the unused tail
            return ids[0], ids[1]
    return None


def _packed_logits(model: nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
    """Logits of both documents; ``None`` from a model that takes no positions."""
    # Two rows, since some attention kernels tell documents apart in a single row only.
    try:
        found: torch.Tensor = model(
            input_ids=ids.expand(2, -1), position_ids=positions.expand(2, -1), use_cache=False
        ).logits
    except (TypeError, ValueError):
        return None
    return found[1:]


def _distance(together: torch.Tensor, alone: torch.Tensor) -> float:
    """Root-mean-square difference over the spread of the logits."""
    left, right = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (together, alone))
    return float((left - right).norm() / right.norm().clamp_min(1e-12))
