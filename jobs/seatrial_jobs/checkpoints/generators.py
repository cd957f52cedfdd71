"""The random generators of a process, kept and put back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """The state of this process's random generators, as JSON values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    found: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state().tolist()
    return found


def restore(found: Mapping[str, Any]) -> None:
    """Put the random generators back where :func:`states` found them."""
    torch.set_rng_state(torch.tensor(found["torch"], dtype=torch.uint8))
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(found["cuda"], dtype=torch.uint8))
