"""The model that a job or an engine starts from: found, pinned, checked, on this machine's disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seatrial.errors import UserError
from seatrial.registry import versions
from seatrial.registry.manifest import REMOTE_CODE_KEYS, Kind

HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")
"""What is fetched of a hub model; Python files and pickles are not even fetched."""
FIX = "give models:/NAME/VERSION, models:/NAME@ALIAS, a directory, or a Hugging Face hub name"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""How a model without a chat template of its own is spoken to, in training as in serving: turns as
`<|role|>content` and the end token."""


@dataclass(frozen=True)
class LocalBase:
    """A base model's files."""

    path: Path
    ref_pinned: str
    """The reference with aliases and branches replaced by what they named."""
    digest: str
    """SHA-256 over all files, as a manifest has it: the name by which adapters know their base."""


def resolve(
    ref: str,
    revision: str | None,
    *,
    field: str,
    cache: Path,
    kinds: Sequence[Kind] = ("full",),
    root: Path | None = None,
    uri: str | None = None,
) -> LocalBase:
    """Bring the model ``ref`` to this machine and check it.

    ``field`` is the part of the configuration that names it, ``cache`` holds registered versions, ``root`` is
    where relative directories start.

    Raises:
        UserError: there is no such model, or it is none of ``kinds``, or :func:`check_folder` refuses it.
        RetryableError: MLflow does not answer.
    """
    what = f"{field}: {ref}"
    if ref.startswith("models:/"):
        found = _registered(ref, what, cache, kinds, uri)
        check_folder(found.path, what)
        return found
    folder = ((root or Path.cwd()) / Path(ref).expanduser()).absolute()
    pinned = str(folder)
    if not folder.is_dir():
        folder = _from_hub(ref, revision, what)
        pinned = f"{ref}@{folder.name}"
    check_folder(folder, what)
    return LocalBase(folder, pinned, versions.folder_digest(folder))


def check_folder(path: Path, what: str) -> None:
    """Refuse a folder that holds no model, or one that could run code when it is loaded.

    A model that names remote code is refused even where `transformers` knows its architecture: the field
    would be copied into every version made from it, which the manifest then refuses.

    Raises:
        UserError: no configuration, no safetensors, or a JSON file that is damaged or names code.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{what}: has no config.json, so it holds no model: {FIX}")
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"{what}: has no .safetensors weights (pickled weights are never loaded): "
            "save the model with safe_serialization"
        )
    for file in sorted(path.glob("*config.json")):
        try:
            content = json.loads(file.read_bytes())
        except ValueError as error:
            raise UserError(f"{what}: {file.name}: no valid JSON ({error}): save the model again") from error
        if not isinstance(content, dict):
            raise UserError(f"{what}: {file.name}: holds no JSON object: save the model again")
        asked = [key for key in REMOTE_CODE_KEYS if content.get(key)]
        if asked:
            raise UserError(
                f"{what}: {file.name}: {asked[0]}: asks for remote code, which never runs here: "
                "give a model without it, or a copy without the field"
            )


def has_chat_template(path: Path) -> bool:
    """Whether the tokenizer in ``path`` brings a chat template; else :data:`CHAT_TEMPLATE` is its own."""
    if any((path / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = path / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_bytes()).get("chat_template"))


def _registered(ref: str, what: str, cache: Path, kinds: Sequence[Kind], uri: str | None) -> LocalBase:
    pinned = versions.pin(ref, uri=uri)
    path = versions.download(pinned.name, str(pinned.version), cache, uri=uri)
    manifest = versions.read_manifest(path)
    if manifest.kind not in kinds:
        raise UserError(f"{what}: a version of kind {manifest.kind!r}, not a whole model: {FIX}")
    return LocalBase(path, f"models:/{pinned.name}/{pinned.version}", manifest.digest)


def _from_hub(ref: str, revision: str | None, what: str) -> Path:
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1 or ref.endswith("/"):
        raise UserError(f"{what}: no such directory: {FIX}")
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    problems = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, httpx.HTTPError)
    try:
        return Path(snapshot_download(ref, revision=revision, allow_patterns=list(HUB_FILES)))
    except problems as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{what}: neither a directory nor to be had from the hub ({reason}): {FIX}"
        ) from error
