"""The sizes of a decoder that its time and its memory depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that its time depends on."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a Hugging Face `config.json`."""
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(
            hidden=hidden,
            feed_forward=int(config.get("intermediate_size") or 4 * hidden),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    def config(self) -> dict[str, Any]:
        """The inverse of :meth:`of`."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }

    @property
    def block(self) -> int:
        """Weights of the matrices of all decoder blocks."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All weights; norms, which are few, by their formula too."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.block + embeddings + self.hidden * (2 * self.layers + 1)

    def flops_per_token(self, seq_tokens: int, *, trains_base: bool) -> float:
        """Forward and backward (Kaplan et al. 2020, arXiv:2001.08361, 6N), attention scores included.

        With frozen weights the gradients of the weights fall away: 4N.
        """
        matrices = self.block + self.vocabulary * self.hidden
        scores = 2 * self.layers * self.heads * self.head_dim * seq_tokens
        return (6 if trains_base else 4) * matrices + 6 * scores
