"""The model that a job starts from: found, pinned, verified, on this machine's disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError, UserError
from seatrial.registry import versions

HUB_FILES = ("*.safetensors", "*.json", "*.jinja")
"""What is fetched of a hub model: no pickled weights and no code."""
FIX = "give models:/NAME/VERSION, models:/NAME@ALIAS, a directory, or a Hugging Face hub name"


@dataclass(frozen=True)
class LocalBase:
    """A base model's files."""

    path: Path
    ref_pinned: str
    """The reference with aliases and branches replaced by what they named."""
    digest: str
    """SHA-256 over all files, as a manifest has it."""


def resolve(ref: str, revision: str | None, *, root: Path | None = None) -> LocalBase:
    """Bring the model ``ref`` to this machine.

    Raises:
        UserError: there is no such model, or it is no whole model.
    """
    if ref.startswith("models:/"):
        return _registered(ref)
    folder = ((root or Path.cwd()) / Path(ref).expanduser()).absolute()
    if folder.is_dir():
        return _directory(ref, folder)
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1 or ref.endswith("/"):
        raise UserError(f"model.base: {ref}: no such directory: {FIX}")
    return _hub(ref, revision)


def _registered(ref: str) -> LocalBase:
    try:
        pinned = versions.pin(ref)
        assert pinned.version is not None  # noqa: S101
        path = versions.download(pinned.name, pinned.version, Addresses.resolve().home / "versions")
    except RetryableError as error:
        raise UserError(str(error)) from error
    manifest = versions.read_manifest(path)
    if manifest.kind != "full":
        raise UserError(f"model.base: {ref}: a version of kind {manifest.kind!r}, not a whole model: {FIX}")
    return LocalBase(path, f"models:/{pinned.name}/{pinned.version}", manifest.digest)


def _directory(ref: str, folder: Path) -> LocalBase:
    if not (folder / "config.json").is_file():
        raise UserError(f"model.base: {ref}: has no config.json, so it holds no model: {FIX}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model.base: {ref}: has no .safetensors weights: convert it to safetensors")
    return LocalBase(folder, str(folder), versions.folder_digest(folder))


def _hub(ref: str, revision: str | None) -> LocalBase:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(ref, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base: {ref}: neither a directory nor a model of the hub ({reason}): {FIX}"
        ) from error
    if not (path / "config.json").is_file():
        raise UserError(f"model.base: {ref}: has no config.json, so it holds no model: {FIX}")
    return LocalBase(path, f"{ref}@{path.name}", versions.folder_digest(path))
