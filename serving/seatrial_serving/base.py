"""The model of an engine on this machine: a base, or a version that is a whole model."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from urllib.parse import quote

from seatrial.errors import SeatrialError, UserError
from seatrial.registry import bases, versions
from seatrial.registry.bases import LocalBase, check_folder
from seatrial_serving.spec import Spec

__all__ = ["LocalBase", "check_folder", "full_model", "resolve"]

log = logging.getLogger(__name__)


def resolve(ref: str, revision: str | None, cache: Path) -> LocalBase:
    """Find ``ref``: `models:/NAME/VERSION`, a directory, or a Hugging Face hub name.

    Where the registry does not give a version, the copy is used that an earlier start left on this machine.

    Raises:
        UserError: it is not there, is an adapter, has no safetensors weights, or asks for remote code.
        RetryableError: MLflow does not answer.
    """
    try:
        found = bases.resolve(ref, revision, field="engine.base", cache=cache, kinds=("full", "int8"))
    except SeatrialError as error:
        kept = _kept(ref, cache)
        if kept is None:
            raise
        log.warning("%s: the copy of an earlier start is used", error)
        return kept
    if found.ref_pinned.startswith("models:/"):
        _note(found, cache)
    return found


def full_model(spec: Spec, cache: Path) -> Path:
    """The folder of the version that ``spec`` names, which is a whole model.

    Raises:
        UserError: no version is named; it is missing, has another digest, or is no whole model.
        RetryableError: MLflow does not answer, and no earlier start left a copy on this machine.
    """
    if spec.version is None:
        raise UserError("args.version: missing: give the version that this application serves")
    name = f"{spec.service.name}@{spec.version}"
    known = versions.cached(cache, spec.digest) if spec.digest else None
    folder = known or versions.download(spec.service.name, spec.version, cache)
    manifest = versions.read_manifest(folder)
    if manifest.kind == "adapter":
        raise UserError(f"{name}: kind adapter: it is loaded into the service's own engine")
    if spec.digest is not None and manifest.digest != spec.digest:
        raise UserError(f"{name}: digest {manifest.digest[:12]}: expected {spec.digest[:12]}")
    check_folder(folder, name)
    return folder


def _note_path(ref: str, cache: Path) -> Path:
    return cache.parent / "pins" / f"{quote(ref.removeprefix('models:/'), safe='')}.json"


def _note(base: LocalBase, cache: Path) -> None:
    """Write the digest down: a version's name and number do not say where its copy lies."""
    path = _note_path(base.ref_pinned, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"digest": base.digest}), encoding="utf-8")
    partial.replace(path)


def _kept(ref: str, cache: Path) -> LocalBase | None:
    """The version's verified copy, if its digest was written down. An alias has none."""
    if not ref.startswith("models:/"):
        return None
    try:
        digest = str(json.loads(_note_path(ref, cache).read_bytes())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    folder = versions.cached(cache, digest)
    return LocalBase(folder, ref, digest) if folder is not None else None
