"""The base model on this machine: found, checked for what may not run, and identified by a digest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from seatrial.errors import UserError
from seatrial.registry import versions
from seatrial.registry.manifest import REMOTE_CODE_KEYS

# What vLLM needs of a hub model; Python files and pickles are not even fetched.
HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class LocalBase:
    """A base model's directory and the digest that adapters name it by."""

    path: Path
    ref: str
    digest: str


def resolve(ref: str, revision: str | None, cache: Path) -> LocalBase:
    """Find ``ref``: `models:/NAME/VERSION`, a directory, or a Hugging Face hub name.

    Raises:
        UserError: it is not there, has no safetensors weights, or asks for remote code.
        RetryableError: MLflow does not answer.
    """
    if ref.startswith("models:/"):
        pinned = versions.pin(ref)
        path = versions.download(pinned.name, str(pinned.version), cache)
        manifest = versions.read_manifest(path)
        if manifest.kind == "adapter":
            raise UserError(f"engine.base: {ref}: is an adapter: name the full model that it belongs to")
        found = LocalBase(path, f"models:/{pinned.name}/{pinned.version}", manifest.digest)
    else:
        path = Path(ref).expanduser()
        if not path.is_dir():
            path = _from_hub(ref, revision)
        found = LocalBase(path.resolve(), ref, versions.folder_digest(path))
    check_folder(found.path, f"engine.base: {ref}")
    return found


def check_folder(path: Path, what: str) -> None:
    """Refuse a model that could run code when it is loaded.

    Raises:
        UserError: no safetensors, or a JSON file that names code.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{what}: no config.json in {path}: give the directory of a Hugging Face model")
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"{what}: no .safetensors weights in {path} (pickled weights are never loaded): "
            "save the model with safe_serialization"
        )
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json"):
        file = path / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_bytes())
        except ValueError as error:
            raise UserError(f"{what}: {file}: no valid JSON ({error}): save the model again") from error
        asked = [key for key in REMOTE_CODE_KEYS if isinstance(content, dict) and content.get(key)]
        if asked:
            raise UserError(f"{what}: {file}: {asked[0]}: asks for remote code, which never runs here")


def _from_hub(ref: str, revision: str | None) -> Path:
    if ref.startswith(("/", ".", "~")):
        raise UserError(f"engine.base: {ref}: no such directory: give a model's directory or hub name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(ref, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"engine.base: {ref}: neither a directory nor to be had from the hub ({reason}): "
            "give models:/NAME/VERSION, a directory, or a hub name that this machine can reach"
        ) from error
