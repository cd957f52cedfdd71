"""Model shapes by name, the arithmetic that a token costs, and what a card could do at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BF16_PEAKS_TFLOPS = {
    # Dense, with float32 accumulation; data sheets give twice as much, "with sparsity".
    ("B200",): 2250.0,  # NVIDIA DGX B200 data sheet: 72 PFLOP/s of FP8 with 8 cards, a quarter of it each way
    ("H200", "NVL"): 835.5,  # NVIDIA H200 data sheet
    ("H200",): 989.5,  # NVIDIA H200 data sheet
    ("H100", "NVL"): 835.5,  # NVIDIA H100 data sheet
    ("H100", "PCIe"): 756.5,  # NVIDIA H100 data sheet
    ("H100",): 989.5,  # NVIDIA H100 data sheet, SXM
    ("A100",): 312.0,  # NVIDIA A100 data sheet
    ("L40S",): 362.0,  # NVIDIA L40S data sheet
    ("L4",): 121.0,  # NVIDIA L4 data sheet
    ("A10",): 125.0,  # NVIDIA A10 data sheet
}


@dataclass(frozen=True)
class Shape:
    """A Llama: L layers, H heads of Q dimensions, V entries; input and output embeddings are one matrix."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


SHAPES = {
    "tiny": Shape(2048, 64, 128, 2, 2, 1, 32),
    "small": Shape(8192, 384, 1024, 6, 6, 2, 64),
    "1b": Shape(128256, 2048, 8192, 16, 32, 8, 64),  # Llama 3.2 1B: its config.json
    "3b": Shape(128256, 3072, 8192, 28, 24, 8, 128),  # Llama 3.2 3B: its config.json
}


def build(shape: Shape, *, seq_tokens: int, attention: str, device: Any) -> Any:
    """A `LlamaForCausalLM` with random float32 weights, the same ones each time, in training mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=seq_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).train()


def parameters(shape: Shape) -> int:
    """N: every weight, the one embedding matrix included, since it multiplies at the output."""
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    layer = attention + 3 * shape.hidden * shape.feed_forward + 2 * shape.hidden
    return shape.vocabulary * shape.hidden + shape.layers * layer + shape.hidden


def flops_per_token(shape: Shape, attended: float) -> float:
    """Arithmetic of the forward and backward pass: 6N + 12·L·H·Q·T, without recomputation.

    Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B. ``attended`` is its T: the causal half is not
    taken off there, nor here; with several documents in a row it is :func:`attended_tokens`.
    """
    return 6 * parameters(shape) + 12 * shape.layers * shape.heads * shape.head_dim * attended


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
