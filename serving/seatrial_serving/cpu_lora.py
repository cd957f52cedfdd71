"""Adapters on CPUs: two matrix products for a layer, however many adapters a batch mixes.

vLLM's own CPU code copies an adapter's matrices once for every token of the batch before it multiplies; with
a small model that is more than half of a step. Here the matrices of all loaded adapters stand side by side,
every token is multiplied with all of them, and a mask of zeros and ones leaves each token what its own
adapter gave. It is exact: a masked product adds zero, and tokens without an adapter are left alone.

The products are in float32, as vLLM's are; oneDNN's bfloat16 takes several times as long at these sizes.
The engine gets this through vLLM's own `worker_cls` argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker

Stacked = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Fused:
    """The matrices of K loaded adapters for one layer of S slices, as they were at ``written``."""

    written: tuple[int, ...]
    a: torch.Tensor  # (S·K·R, I)
    b: Stacked  # S times (K·R, O)


class GroupedLora(PunicaWrapperCPU):
    """The products of LoRA's linear layers, for all adapters at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slots: list[int] = []
        self._mask: torch.Tensor | None = None
        self._is_idle = True
        self._fused: dict[int, Fused] = {}
        self._blank: dict[int, tuple[int, bool]] = {}

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kw: Any
    ) -> None:
        """Note which adapters are loaded, and which of the next batch's tokens are whose."""
        super().update_metadata(mapping, lora_index_to_id, *args)
        loaded = [slot for slot, adapter in enumerate(lora_index_to_id) if adapter is not None]
        if loaded != self._slots:
            self._slots = loaded
            self._fused.clear()
        tokens = self.token_lora_indices  # (T,), -1 for none
        owns = tokens.unsqueeze(1) == torch.tensor(loaded, dtype=tokens.dtype)  # (T, K)
        self._is_idle = not bool(owns.any())
        self._mask = None if bool(owns.all()) else owns.float().view(-1, 1, len(loaded), 1)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacked,
        lora_b_stacked: Stacked,
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add each slice's `x A^T B^T` to ``y`` in place.

        Shapes: y (T, sum of slices), x (T, I), A (slots, 1, R, I), B (slots, 1, O, R).
        """
        if self._is_idle:
            return
        y = y.view(-1, y.shape[-1])
        fused = self._fuse(lora_a_stacked, lora_b_stacked)
        hidden = linear(x.view(-1, x.shape[-1]).float(), fused.a)  # (T, S·K·R)
        if self._mask is not None:
            shape = (len(hidden), len(output_slices), len(self._slots), -1)
            hidden.view(shape).mul_(self._mask)
        offset = 0
        for part, b, size in zip(hidden.chunk(len(output_slices), 1), fused.b, output_slices, strict=True):
            y[:, offset : offset + size].add_(torch.mm(part, b), alpha=scale)
            offset += size

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        """As vLLM does it, unless no loaded adapter changes the embedding."""
        if not self._is_blank(lora_b_stacked):
            super().add_lora_embedding(y, x, lora_b_stacked, *args, **kwargs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """As vLLM does it, unless no loaded adapter changes the output head."""
        if not self._is_blank(lora_b_stacked):
            super().add_lora_logits(y, x, lora_a_stacked, lora_b_stacked, scale, **kwargs)

    def _is_blank(self, tensor: torch.Tensor) -> bool:
        """Whether all is zero; looked at once after each write."""
        written, is_blank = self._blank.get(tensor.data_ptr(), (-1, False))
        if written != tensor._version:
            is_blank = not bool(tensor.any())
            self._blank[tensor.data_ptr()] = (tensor._version, is_blank)
        return is_blank

    def _fuse(self, a_stacked: Stacked, b_stacked: Stacked) -> Fused:
        # Loading and unloading write in place, and each write counts in a tensor's version.
        written = tuple(tensor._version for tensor in (*a_stacked, *b_stacked))
        key = a_stacked[0].data_ptr()
        known = self._fused.get(key)
        if known is None or known.written != written:
            a = [tensor[self._slots, 0].flatten(0, 1) for tensor in a_stacked]  # S times (K·R, I)
            b = [tensor[self._slots, 0].permute(0, 2, 1).flatten(0, 1) for tensor in b_stacked]
            known = Fused(written, torch.cat(a).float(), tuple(matrix.float().contiguous() for matrix in b))
            self._fused[key] = known
        return known


class Worker(CPUWorker):
    """vLLM's CPU worker with these products."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = f"{GroupedLora.__module__}.{GroupedLora.__qualname__}"
        current_platform.get_punica_wrapper = lambda: name
        super().__init__(*args, **kwargs)
