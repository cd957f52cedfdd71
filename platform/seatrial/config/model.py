"""Which weights a job starts from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from seatrial.config.section import PositiveInt, Section, wrong


class ModelSection(Section):
    """The model that is fine-tuned."""

    base: str = Field(min_length=1)
    """`models:/NAME/VERSION`, `models:/NAME@ALIAS`, a directory, or a Hugging Face hub name."""
    revision: str | None = None
    """Commit or tag of a hub model; pin it for repeatable runs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights while training; `auto` is bfloat16 for frozen weights on GPUs, else float32."""


class TokenizerSection(Section):
    """The tokenizer that pretraining makes."""

    vocab_size: int = Field(default=2048, ge=300, le=200_000)
    """Entries of the ByteLevel BPE vocabulary, special tokens included."""


class ArchitectureSection(Section):
    """Shape of a Llama that is trained from nothing."""

    hidden_size: PositiveInt = 192
    """Width of the residual stream; a multiple of `heads`."""
    layers: PositiveInt = 4
    """Number of decoder blocks."""
    heads: PositiveInt = 6
    """Number of query heads."""
    kv_heads: PositiveInt = 2
    """Number of key and value heads; divides `heads`."""
    head_dim: Literal[32, 64, 80, 96, 112, 128, 192, 256] = 32
    """Width of one head; the sizes that vLLM's CPU attention takes."""
    feed_forward: PositiveInt = 512
    """Width of the gated feed-forward layer."""
    max_positions: PositiveInt = 1024
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ArchitectureSection:
        if self.heads % self.kv_heads:
            raise wrong("kv_heads", self.kv_heads, f"must divide heads ({self.heads})")
        if self.hidden_size % self.heads:  # LlamaConfig asks for it, whatever head_dim is
            raise wrong("hidden_size", self.hidden_size, f"must be a multiple of heads ({self.heads})")
        return self
