"""The `seatrial.json` manifest: what a version is, and the digest of every file in it.

A version holds safetensors and JSON only. Neither can run code when it is loaded, unlike pickle, and the
fields by which a JSON configuration asks for remote code are refused here as well.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from seatrial.config.section import Section
from seatrial.errors import UserError

MANIFEST = "seatrial.json"
ALLOWED_SUFFIXES = (".safetensors", ".json")
# Keys of Hugging Face configurations that name Python code to import from the model's folder.
REMOTE_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")

Kind = Literal["adapter", "full", "int8", "onnx"]


class FileEntry(Section):
    """One file of a version."""

    sha256: str
    size_bytes: int


class BaseRef(Section):
    """The model that an adapter belongs to."""

    ref: str
    digest: str


class Manifest(Section):
    """The contents of `seatrial.json`."""

    format: Literal[1] = 1
    kind: Kind
    method: str
    base: BaseRef | None = None
    data_digest: str | None = None
    code_digest: str | None = None
    run_id: str | None = None
    rank: int | None = None
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """SHA-256 over the names and digests of all files: the identity of the weights."""
        return _digest_of({name: entry.sha256 for name, entry in self.files.items()})


def write_manifest(
    folder: Path,
    *,
    kind: Kind,
    method: str,
    base: BaseRef | None = None,
    data_digest: str | None = None,
    code_digest: str | None = None,
    run_id: str | None = None,
    rank: int | None = None,
) -> Manifest:
    """Digest every file in ``folder`` and write `seatrial.json`, last and in one rename.

    Raises:
        UserError: the folder is empty or holds a file that a version must not have.
    """
    names = _file_names(folder)
    if not names:
        raise UserError(f"{folder}: no files: save the weights before the manifest is written")
    for name in names:
        _refuse_unsafe(folder, name)
    manifest = Manifest(
        kind=kind,
        method=method,
        base=base,
        data_digest=data_digest,
        code_digest=code_digest,
        run_id=run_id,
        rank=rank,
        files={name: _entry(folder / name) for name in names},
    )
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder``, not compared with its files.

    Raises:
        UserError: there is none, or it is no manifest of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path}: missing manifest: register the version with a Seatrial job")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise UserError(f"{path}: {field}: {first['msg']}: register the version again") from error


def verify(folder: Path) -> Manifest:
    """Compare every file of ``folder`` with its manifest.

    Raises:
        UserError: names the first file that is missing, extra, changed, of a forbidden kind, or that asks
            for remote code.
    """
    manifest = read_manifest(folder)
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{folder / MANIFEST}: files: {name!r}: must stay inside the version's folder")
    present = set(_file_names(folder))
    for name in sorted(present - set(manifest.files)):
        _refuse_unsafe(folder, name)
        raise UserError(f"{folder / name}: not in the manifest: register the version again")
    for name, entry in manifest.files.items():
        if name not in present:
            raise UserError(f"{folder / name}: missing file of the manifest: register the version again")
        _refuse_unsafe(folder, name)
        actual = _entry(folder / name)
        if actual != entry:
            raise UserError(
                f"{folder / name}: sha256 {actual.sha256[:12]} is not the manifest's {entry.sha256[:12]}: "
                "the file was changed after registration; register the version again"
            )
    return manifest


def folder_digest(folder: Path) -> str:
    """The digest that a manifest of these files would have: the identity of a model that has none yet."""
    names = [name for name in _file_names(folder) if Path(name).suffix in ALLOWED_SUFFIXES]
    return _digest_of({name: _sha256(folder / name) for name in names})


def _file_names(folder: Path) -> list[str]:
    """Relative POSIX names of all files but the manifest, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name not in (MANIFEST, f".{MANIFEST}.partial"))


def _refuse_unsafe(folder: Path, name: str) -> None:
    path = folder / name
    if path.is_symlink():
        raise UserError(f"{path}: a link: a version must hold its own files")
    if path.suffix not in ALLOWED_SUFFIXES:
        allowed = " and ".join(ALLOWED_SUFFIXES)
        raise UserError(
            f"{path}: forbidden file type {path.suffix or '(none)'!r}: a version holds {allowed} only"
        )
    if path.suffix == ".json":
        _refuse_remote_code(path)


def _refuse_remote_code(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid JSON ({error}): save the version again") from error
    if isinstance(content, dict):
        for key in REMOTE_CODE_KEYS:
            if content.get(key):
                raise UserError(
                    f"{path}: {key}: asks for remote code, which never runs here: remove the field"
                )


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=_sha256(path), size_bytes=path.stat().st_size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(digests: dict[str, str]) -> str:
    text = json.dumps(digests, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
