"""Model shapes by name, the arithmetic that a token costs, and what a card could do at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seatrial_jobs.shape import Shape

BF16_PEAKS_TFLOPS = {
    # Dense, with float32 accumulation. Halved where NVIDIA gives the figure "with sparsity" alone.
    ("B200",): 4500 / 2,  # https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703
    ("H200", "NVL"): 1671 / 2,  # https://www.nvidia.com/en-us/data-center/h200/
    ("H200",): 1979 / 2,  # the same page, SXM
    ("H100", "NVL"): 1671 / 2,  # https://www.nvidia.com/en-us/data-center/h100/
    ("H100", "PCIe"): 1513 / 2,  # its data sheet of 2022
    ("H100",): 1979 / 2,  # https://www.nvidia.com/en-us/data-center/h100/, SXM
    ("A100",): 312.0,  # https://www.nvidia.com/en-us/data-center/a100/
    ("L40S",): 362.0,  # https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413
    ("L4",): 242 / 2,  # https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet
    ("A10",): 125.0,  # nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf
}


SHAPES = {
    "tiny": Shape(64, 128, 2, 2, 1, 32, 2048, tied=True),
    "small": Shape(384, 1024, 6, 6, 2, 64, 8192, tied=True),
    "1b": Shape(2048, 8192, 16, 32, 8, 64, 128256, tied=True),  # Llama 3.2 1B: its config.json
    "3b": Shape(3072, 8192, 28, 24, 8, 128, 128256, tied=True),  # Llama 3.2 3B: its config.json
}


def build(shape: Shape, *, seq_tokens: int, attention: str, device: Any) -> Any:
    """A `LlamaForCausalLM` with random float32 weights, the same ones each time, in training mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **shape.config(),
        max_position_embeddings=seq_tokens,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).train()


def flops_per_token(shape: Shape, attended: float) -> float:
    """Arithmetic of the forward and backward pass: 6N + 12·L·H·Q·T, without recomputation.

    Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B. ``attended`` is its T: the causal half is not
    taken off there, nor here; with several documents in a row it is :func:`attended_tokens`.
    """
    return 6 * shape.parameters + 12 * shape.layers * shape.heads * shape.head_dim * attended


def attended_tokens(lengths: Sequence[int]) -> float:
    """Length of its own document, of the mean token: what T is when documents do not see each other."""
    return sum(length * length for length in lengths) / sum(lengths)


def peak_flops(card: str) -> float | None:
    """Dense bfloat16 FLOP/s of a card by the name that CUDA gives it; None: not in the table."""
    words = set(card.replace("-", " ").split())
    for marks, tflops in BF16_PEAKS_TFLOPS.items():
        if words.issuperset(marks):
            return tflops * 1e12
    return None
