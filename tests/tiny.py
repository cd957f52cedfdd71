"""A model small enough to be trained in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def make_base(folder: Path, texts: Sequence[str]) -> None:
    """A Llama of 100 thousand parameters with a tokenizer trained on ``texts``, in ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from seatrial_jobs.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(list(texts), 400)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
