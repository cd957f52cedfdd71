"""Groups of workers without Ray: processes that exchange through gloo."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from seatrial_jobs.batches import Share

CPU = torch.device("cpu")
TIMEOUT = timedelta(seconds=60)


def together(size: int, act: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``act(share, *arguments)`` returns on each of ``size`` workers, by rank."""
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(size, mp_context=_context()) as pool:
        meeting = str(Path(place) / "meeting")
        waiting = [pool.submit(_work, meeting, rank, size, act, arguments) for rank in range(size)]
        return [one.result(TIMEOUT.total_seconds() * 2) for one in waiting]


@cache
def _context() -> Any:
    """New processes come from one that has imported everything, and has no threads yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["peft", "seatrial_jobs.workers.watch", "transformers.models.llama.modeling_llama"]
    )
    return context


def _work(meeting: str, rank: int, size: int, act: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=TIMEOUT
    )
    try:
        return act(Share(rank, size, CPU), *arguments)
    finally:
        dist.destroy_process_group()
