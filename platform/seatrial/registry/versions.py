"""Model versions in MLflow's registry: find, register, fetch and verify them."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.errors import UserError
from seatrial.registry.client import connect
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
    "describe",
    "download",
    "folder_digest",
    "parse_ref",
    "pin",
    "read_manifest",
    "register",
    "verify",
    "write_manifest",
]

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
        UserError: there is no such model, alias or version.
    """
    from mlflow.exceptions import MlflowException

    ref = parse_ref(text)
    client = connect(uri)
    try:
        if ref.alias is not None:
            found = client.get_model_version_by_alias(ref.name, ref.alias)
        else:
            found = client.get_model_version(ref.name, str(ref.version))
    except MlflowException as error:
        raise _unknown(text, error) from error
    return Ref(ref.name, str(found.version), None)


def describe(name: str, version: str, *, uri: str | None = None) -> ModelVersion:
    """MLflow's record of one version, tags included.

    Raises:
        UserError: there is no such version.
    """
    from mlflow.exceptions import MlflowException

    try:
        return connect(uri).get_model_version(name, version)
    except MlflowException as error:
        raise _unknown(f"models:/{name}/{version}", error) from error


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
    """
    client = connect(uri)
    _ensure_model(client, name)
    for known in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if known.tags.get("seatrial.digest") == manifest.digest:
            return str(known.version)
    labels = {
        "seatrial.kind": manifest.kind,
        "seatrial.digest": manifest.digest,
        "seatrial.method": manifest.method,
    }
    if manifest.base is not None:
        labels |= {"seatrial.base": manifest.base.ref, "seatrial.base_digest": manifest.base.digest}
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
    made = client.create_model_version(
        name, source, run_id=run_id, tags={**labels, **(tags or {})}, await_creation_for=0
    )
    return str(made.version)


def download(name: str, version: str, cache: Path, *, uri: str | None = None) -> Path:
    """A verified copy of the version's files below ``cache``, fetched once for each digest.

    Raises:
        UserError: no such version, or its files are not what its manifest and its registration say.
        RetryableError: MLflow does not answer.
    """
    record = describe(name, version, uri=uri)
    digest = record.tags.get("seatrial.digest")
    if not digest:
        raise UserError(
            f"models:/{name}/{version}: no `seatrial.digest` tag: it was not registered by a Seatrial job; "
            "register it with one"
        )
    kept = cache / f"sha256-{digest}"
    if not kept.is_dir():
        _fetch(connect(uri), name, version, kept)
    manifest = verify(kept)
    if manifest.digest != digest:
        raise UserError(
            f"models:/{name}/{version}: its files have digest {manifest.digest[:12]}, registered was "
            f"{digest[:12]}: the artifact was replaced; register the version again"
        )
    return kept


def _fetch(client: MlflowClient, name: str, version: str, kept: Path) -> None:
    """Download into a neighbour of ``kept``, verify, and rename; the first of several callers wins."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=kept.parent))
    try:
        source = client.get_model_version_download_uri(name, version)
        folder = Path(
            download_artifacts(artifact_uri=source, dst_path=str(partial), tracking_uri=client.tracking_uri)
        )
        verify(folder)
        if not kept.exists():
            folder.rename(kept)
    except MlflowException as error:
        raise UserError(f"models:/{name}/{version}: its artifact cannot be read ({error.message})") from error
    except OSError:
        if not kept.is_dir():  # another process renamed first: its copy is as good
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _unknown(what: str, error: Exception) -> UserError:
    message = str(getattr(error, "message", error)).splitlines()[0]
    return UserError(f"{what}: not in the registry ({message}): list versions in the MLflow UI under Models")
