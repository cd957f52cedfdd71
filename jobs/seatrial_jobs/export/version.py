"""A trained model as a version's folder: safetensors and JSON, and the manifest last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.registry.manifest import BaseRef, Manifest, write_manifest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from seatrial_jobs.methods import Method


def write_version(
    folder: Path,
    model: nn.Module,
    method: Method,
    *,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    base: BaseRef | None,
    data_digest: str,
    code_digest: str,
    run_id: str,
) -> Manifest:
    """Save the weights and, for a whole model, its tokenizer; then digest everything.

    Raises:
        UserError: the method saved a file that a version must not have.
    """
    method.save(model, folder, base)
    if method.kind == "full":
        tokenizer.save_pretrained(folder, save_jinja_files=False)
    return write_manifest(
        folder,
        kind=method.kind,
        method=name,
        base=base,
        data_digest=data_digest,
        code_digest=code_digest,
        run_id=run_id,
        rank=method.rank,
    )
