"""The base model of an engine on this machine."""

from __future__ import annotations

from pathlib import Path

from seatrial.registry import bases
from seatrial.registry.bases import LocalBase, check_folder

__all__ = ["LocalBase", "check_folder", "resolve"]


def resolve(ref: str, revision: str | None, cache: Path) -> LocalBase:
    """Find ``ref``: `models:/NAME/VERSION`, a directory, or a Hugging Face hub name.

    Raises:
        UserError: it is not there, is an adapter, has no safetensors weights, or asks for remote code.
        RetryableError: MLflow does not answer.
    """
    return bases.resolve(ref, revision, field="engine.base", cache=cache, kinds=("full", "int8"))
