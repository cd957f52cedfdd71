"""Model versions in MLflow's registry: find, register, fetch and verify them."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.errors import RetryableError, SeatrialError, UserError
from seatrial.registry.client import NotRegisteredError, asking, connect, one_line, transferring
from seatrial.registry.manifest import (
    BaseRef,
    FileEntry,
    Manifest,
    folder_digest,
    read_manifest,
    verify,
    write_manifest,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "BaseRef",
    "FileEntry",
    "Manifest",
    "Ref",
    "cached",
    "describe",
    "download",
    "folder_digest",
    "folder_of",
    "parse_ref",
    "pin",
    "read_manifest",
    "register",
    "verify",
    "write_manifest",
]

log = logging.getLogger(__name__)

DIGEST_TAG = "seatrial.digest"
SHA256 = re.compile(r"[0-9a-f]{64}")
REF = re.compile(r"^models:/(?P<name>[^/@]+)(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[A-Za-z][\w-]*))$")


@dataclass(frozen=True)
class Ref:
    """A `models:/` reference; exactly one of ``version`` and ``alias`` is set."""

    name: str
    version: str | None
    alias: str | None


def parse_ref(text: str) -> Ref:
    """Take `models:/NAME/VERSION` or `models:/NAME@ALIAS` apart.

    Raises:
        UserError: it is neither.
    """
    match = REF.match(text)
    if match is None:
        raise UserError(f"model reference: {text!r}: write models:/NAME/VERSION or models:/NAME@ALIAS")
    return Ref(**match.groupdict())


def pin(text: str, *, uri: str | None = None) -> Ref:
    """The reference with its alias replaced by the version that the alias names now.

    Raises:
        NotRegisteredError: there is no such model, alias or version.
        RetryableError: MLflow does not answer.
    """
    ref = parse_ref(text)
    client = connect(uri)
    with asking(partial(_unknown, text)):
        if ref.alias is not None:
            found = client.get_model_version_by_alias(ref.name, ref.alias)
        else:
            found = client.get_model_version(ref.name, str(ref.version))
    return Ref(ref.name, str(found.version), None)


def describe(name: str, version: str, *, uri: str | None = None) -> ModelVersion:
    """MLflow's record of one version, tags included.

    Raises:
        NotRegisteredError: there is no such version.
        RetryableError: MLflow does not answer.
    """
    client = connect(uri)
    with asking(partial(_unknown, f"models:/{name}/{version}")):
        return client.get_model_version(name, version)


def register(
    name: str,
    run_id: str,
    manifest: Manifest,
    *,
    artifact_path: str = "model",
    tags: dict[str, str] | None = None,
    uri: str | None = None,
) -> str:
    """Make the run's artifact a version of ``name`` and return its number.

    Registering the same run's same weights again returns the number that they already have.

    Raises:
        RetryableError: MLflow does not answer or refuses.
    """
    client = connect(uri)
    with asking():
        _ensure_model(client, name)
        for known in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
            if known.tags.get(DIGEST_TAG) == manifest.digest:
                return str(known.version)
        source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
        labels = {**_labels(manifest), **(tags or {})}
        made = client.create_model_version(name, source, run_id=run_id, tags=labels, await_creation_for=0)
    return str(made.version)


def download(name: str, version: str, cache: Path, *, uri: str | None = None) -> Path:
    """A verified copy of the version's files below ``cache``, fetched once for each digest.

    Raises:
        UserError: no such version, or its files are not what its manifest and its registration say.
        RetryableError: MLflow does not answer, or the files do not arrive.
    """
    what = f"models:/{name}/{version}"
    digest = describe(name, version, uri=uri).tags.get(DIGEST_TAG)
    if not digest:
        raise UserError(
            f"{what}: no `{DIGEST_TAG}` tag: it was not registered by a Seatrial job; register it with one"
        )
    try:
        kept = folder_of(cache, digest)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    if cached(cache, digest) is None:
        _fetch(connect(uri), name, version, digest, kept)
    return kept


def cached(cache: Path, digest: str) -> Path | None:
    """The verified copy below ``cache`` of the version with this digest; one that does not hold is deleted.

    Raises:
        UserError: it is no digest.
    """
    kept = folder_of(cache, digest)
    if not kept.is_dir():
        return None
    try:
        if verify(kept).digest == digest:
            return kept
        problem = "holds another version"
    except (UserError, OSError) as error:
        problem = str(error)
    log.warning("the copy of a version is deleted, to be fetched again: %s", problem)
    _discard(kept)
    return None


def folder_of(cache: Path, digest: str) -> Path:
    """Where ``cache`` keeps the version with this digest.

    Raises:
        UserError: it is no digest: whoever may write tags would choose the folder.
    """
    if not SHA256.fullmatch(digest):
        raise UserError(
            f"{DIGEST_TAG}: {digest[:80]!r}: no SHA-256 in hexadecimal: register the version again"
        )
    return cache / f"sha256-{digest}"


def _fetch(client: MlflowClient, name: str, version: str, digest: str, kept: Path) -> None:
    """Download into a neighbour of ``kept``, verify, and rename; the first of several callers wins."""
    what = f"models:/{name}/{version}"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial_place = Path(tempfile.mkdtemp(prefix=".partial-", dir=kept.parent))
    except OSError as error:
        raise RetryableError(f"{kept.parent}: cannot be written ({error}): free or mend it") from error
    try:
        folder = _downloaded(client, name, version, partial_place)
        found = verify(folder).digest
        if found != digest:
            raise UserError(
                f"{what}: its files have digest {found[:12]}, registered was {digest[:12]}: "
                "the artifact was replaced; register the version again"
            )
        folder.rename(kept)
    except OSError as error:
        if not kept.is_dir():  # another process renamed first: its copy is as good
            raise RetryableError(f"{what}: its files cannot be kept ({error})") from error
    finally:
        shutil.rmtree(partial_place, ignore_errors=True)


def _downloaded(client: MlflowClient, name: str, version: str, place: Path) -> Path:
    """The version's artifact, fetched into ``place``.

    Raises:
        UserError: MLflow has no such version or artifact.
        RetryableError: it did not arrive, for whatever cause: each artifact store has errors of its own.
    """
    from mlflow.artifacts import download_artifacts, list_artifacts

    what = f"models:/{name}/{version}"
    try:
        with asking(partial(_unknown, what)), transferring():
            source = client.get_model_version_download_uri(name, version)
            if not list_artifacts(artifact_uri=source, tracking_uri=client.tracking_uri):
                raise UserError(f"{what}: its artifact is gone ({source}): register the version again")
            found = download_artifacts(
                artifact_uri=source, dst_path=str(place), tracking_uri=client.tracking_uri
            )
    except SeatrialError:
        raise
    except Exception as error:
        raise RetryableError(f"{what}: its artifact did not arrive ({one_line(error)})") from error
    return Path(found)


def _discard(folder: Path) -> None:
    """Take a folder out of the way in one step, then delete it."""
    away = folder.parent / f".broken-{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):  # somebody else was first
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def _labels(manifest: Manifest) -> dict[str, str]:
    labels = {
        "seatrial.kind": manifest.kind,
        DIGEST_TAG: manifest.digest,
        "seatrial.method": manifest.method,
    }
    if manifest.base is not None:
        labels |= {"seatrial.base": manifest.base.ref, "seatrial.base_digest": manifest.base.digest}
    return labels


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _unknown(what: str, reason: str) -> NotRegisteredError:
    return NotRegisteredError(
        f"{what}: not in the registry ({reason}): list versions in the MLflow UI under Models"
    )
