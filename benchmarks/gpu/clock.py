"""When steps end and how much memory they took, on a GPU or a CPU."""

from __future__ import annotations

import gc
import time
from typing import Any


class Clock:
    """Marks in time: CUDA events on a GPU, so that marking does not wait for it; seconds on a CPU."""

    def __init__(self, device: Any) -> None:
        self.on_gpu = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note the time at which everything asked for so far is done."""
        if not self.on_gpu:
            self._marks.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Seconds between each two marks; waits for the GPU."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if not self.on_gpu:
            return [after - before for before, after in pairs]
        import torch

        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


def fresh(device: Any) -> None:
    """Free what the run before left, forget its compiled code, and start the memory's peak anew."""
    import torch

    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: Any) -> int | None:
    """Most memory that tensors took on the GPU since :func:`fresh`; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None
