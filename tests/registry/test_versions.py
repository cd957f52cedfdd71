"""Versions and aliases against a real MLflow server."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from seatrial.errors import RetryableError, UserError
from seatrial.registry import aliases, client, versions
from seatrial.registry.client import NotRegisteredError, connect

if TYPE_CHECKING:
    from conftest import Doorway

pytestmark = pytest.mark.slow


def make_version(uri: str, folder: Path, name: str, fill: bytes = b"a") -> str:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(fill * 1000)
    manifest = versions.write_manifest(folder, kind="adapter", method="lora")
    run = connect(uri).create_run("0")
    connect(uri).log_artifacts(run.info.run_id, str(folder), "model")
    version = versions.register(name, run.info.run_id, manifest, uri=uri)
    assert versions.register(name, run.info.run_id, manifest, uri=uri) == version
    return version


def replace_artifact(uri: str, run_id: str, folder: Path, fill: bytes) -> None:
    (folder / "adapter_model.safetensors").write_bytes(fill * 1000)
    versions.write_manifest(folder, kind="adapter", method="lora")
    connect(uri).log_artifacts(run_id, str(folder), "model")


def test_a_registered_version_comes_back_verified_and_once(mlflow_uri: str, tmp_path: Path):
    version = make_version(mlflow_uri, tmp_path / "made", "round-trip")
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        folders = set(
            pool.map(lambda _: versions.download("round-trip", version, cache, uri=mlflow_uri), range(4))
        )
    assert len(folders) == 1
    assert (folders.pop() / "adapter_model.safetensors").read_bytes() == b"a" * 1000
    assert [path.name for path in cache.iterdir() if path.name.startswith(".partial")] == []


def test_a_copy_that_was_changed_is_fetched_again(mlflow_uri: str, tmp_path: Path):
    version = make_version(mlflow_uri, tmp_path / "made", "tampered")
    folder = versions.download("tampered", version, tmp_path / "cache", uri=mlflow_uri)
    (folder / "adapter_model.safetensors").write_bytes(b"b" * 1000)
    assert versions.download("tampered", version, tmp_path / "cache", uri=mlflow_uri) == folder
    assert (folder / "adapter_model.safetensors").read_bytes() == b"a" * 1000
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_replaced_artifact_is_refused_and_not_kept(mlflow_uri: str, tmp_path: Path):
    version = make_version(mlflow_uri, tmp_path / "made", "replaced")
    run_id = connect(mlflow_uri).get_model_version("replaced", version).run_id
    replace_artifact(mlflow_uri, run_id, tmp_path / "made", b"c")
    with pytest.raises(UserError, match="the artifact was replaced"):
        versions.download("replaced", version, tmp_path / "other", uri=mlflow_uri)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_wrong_tag_does_not_spoil_the_cache_for_the_version_it_names(mlflow_uri: str, tmp_path: Path):
    genuine = make_version(mlflow_uri, tmp_path / "one", "genuine")
    other = make_version(mlflow_uri, tmp_path / "two", "genuine", b"z")
    mlflow = connect(mlflow_uri)
    digest = mlflow.get_model_version("genuine", genuine).tags["seatrial.digest"]
    mlflow.set_model_version_tag("genuine", other, "seatrial.digest", digest)
    with pytest.raises(UserError, match="the artifact was replaced"):
        versions.download("genuine", other, tmp_path / "cache", uri=mlflow_uri)
    folder = versions.download("genuine", genuine, tmp_path / "cache", uri=mlflow_uri)
    assert (folder / "adapter_model.safetensors").read_bytes() == b"a" * 1000


@pytest.mark.parametrize("tag", ["/../../../evil", "../evil", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_a_tag_that_is_no_digest_chooses_no_folder(mlflow_uri: str, tmp_path: Path, tag: str):
    version = make_version(mlflow_uri, tmp_path / "made", "traversal")
    connect(mlflow_uri).set_model_version_tag("traversal", version, "seatrial.digest", tag)
    cache = tmp_path / "a" / "b" / "cache"
    with pytest.raises(UserError, match=rf"models:/traversal/{version}: .*no SHA-256"):
        versions.download("traversal", version, cache, uri=mlflow_uri)
    assert not (tmp_path / "a").exists()


def test_what_mlflow_does_not_have_is_a_user_error_and_all_else_may_pass(doorway: Doorway, tmp_path: Path):
    version = make_version(doorway.uri, tmp_path / "made", "troubled")
    calls: list[Callable[[], Any]] = [
        lambda: versions.describe("troubled", version, uri=doorway.uri),
        lambda: versions.pin(f"models:/troubled/{version}", uri=doorway.uri),
        lambda: versions.download("troubled", version, tmp_path / "cache", uri=doorway.uri),
        lambda: aliases.read("troubled", uri=doorway.uri),
        lambda: aliases.move("troubled", "champion", version, expected=None, uri=doorway.uri),
        lambda: make_version(doorway.uri, tmp_path / uuid.uuid4().hex, "troubled", b"q"),
    ]
    for status in (401, 404, 500, 503):
        doorway.trouble("registered-models|model-versions", status)
        for call in calls:
            with pytest.raises(RetryableError) as caught:
                call()
            assert "\n" not in str(caught.value)
            assert "register a version first" not in str(caught.value)
    doorway.heal()
    with pytest.raises(NotRegisteredError, match="register a version first"):
        aliases.read("nobody", uri=doorway.uri)
    with pytest.raises(NotRegisteredError, match="version: 99"):
        aliases.move("troubled", "champion", "99", expected=None, uri=doorway.uri)
    with pytest.raises(NotRegisteredError, match="not in the registry"):
        versions.describe("troubled", "99", uri=doorway.uri)


@pytest.mark.parametrize("status", [0, 403, 503])
def test_a_download_that_breaks_may_be_tried_again(doorway: Doorway, tmp_path: Path, status: int):
    version = make_version(doorway.uri, tmp_path / "made", "broken-download")
    doorway.trouble(r"artifacts/.*safetensors", status)
    with pytest.raises(RetryableError) as caught:
        versions.download("broken-download", version, tmp_path / "cache", uri=doorway.uri)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
    doorway.heal()
    assert versions.download("broken-download", version, tmp_path / "cache", uri=doorway.uri).is_dir()


def test_an_artifact_that_was_deleted_is_a_user_error(mlflow_uri: str, tmp_path: Path):
    version = make_version(mlflow_uri, tmp_path / "made", "deleted")
    run = connect(mlflow_uri).get_run(connect(mlflow_uri).get_model_version("deleted", version).run_id)
    answer = httpx.delete(
        run.info.artifact_uri.replace("mlflow-artifacts:", f"{mlflow_uri}/api/2.0/mlflow-artifacts/artifacts")
        + "/model"
    )
    assert answer.status_code == 200
    with pytest.raises(UserError, match=rf"models:/deleted/{version}"):
        versions.download("deleted", version, tmp_path / "cache", uri=mlflow_uri)


def test_a_cache_that_cannot_be_written_may_be_tried_again(mlflow_uri: str, tmp_path: Path):
    version = make_version(mlflow_uri, tmp_path / "made", "no-place")
    (tmp_path / "file").write_text("")
    with pytest.raises(RetryableError, match="file"):
        versions.download("no-place", version, tmp_path / "file" / "cache", uri=mlflow_uri)


def test_a_server_that_hangs_is_given_up_in_less_than_a_minute(
    doorway: Doorway, monkeypatch: pytest.MonkeyPatch
):
    for name in client.SETTINGS:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    found = connect(doorway.uri)
    timeout_s, retries = (
        int(os.environ[f"MLFLOW_HTTP_REQUEST_{name}"]) for name in ("TIMEOUT", "MAX_RETRIES")
    )
    assert timeout_s * (retries + 1) < 60
    with client.transferring(), client.transferring():
        assert int(os.environ[client.TIMEOUT]) == client.TRANSFER_TIMEOUT_S
    assert int(os.environ[client.TIMEOUT]) == timeout_s

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with client.transferring():
        assert os.environ[client.TIMEOUT] == "1", "what the environment says is left as it is"
    doorway.trouble("registered-models", -1)
    began = time.monotonic()
    with pytest.raises(RetryableError, match="timeout"), client.asking():
        found.get_registered_model("any")
    assert time.monotonic() - began < 5


def test_a_version_of_another_making_is_refused(mlflow_uri: str, tmp_path: Path):
    mlflow = connect(mlflow_uri)
    mlflow.create_registered_model("foreign")
    run = mlflow.create_run("0")
    made = mlflow.create_model_version("foreign", f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    with pytest.raises(UserError, match="not registered by a Seatrial job"):
        versions.download("foreign", str(made.version), tmp_path, uri=mlflow_uri)


def test_references_are_pinned_and_unknown_ones_named(mlflow_uri: str, tmp_path: Path):
    version = make_version(mlflow_uri, tmp_path / "made", "pinned")
    aliases.move("pinned", "champion", version, expected=None, uri=mlflow_uri)
    assert versions.pin("models:/pinned@champion", uri=mlflow_uri) == versions.Ref("pinned", version, None)
    for unknown in ("models:/pinned@nobody", "models:/pinned/99", "models:/none/1"):
        with pytest.raises(UserError, match="not in the registry"):
            versions.pin(unknown, uri=mlflow_uri)
    with pytest.raises(UserError, match="write models:/NAME/VERSION"):
        versions.parse_ref("models:/a/b/c")


def test_a_persons_move_is_left_standing(mlflow_uri: str, tmp_path: Path):
    first = make_version(mlflow_uri, tmp_path / "one", "contested")
    second = make_version(mlflow_uri, tmp_path / "two", "contested", b"z")
    aliases.move("contested", "champion", first, expected=None, uri=mlflow_uri)
    aliases.move("contested", "champion", first, expected=None, uri=mlflow_uri)
    with pytest.raises(aliases.AliasMovedError) as caught:
        aliases.move("contested", "champion", second, expected="99", uri=mlflow_uri)
    assert caught.value.found == first
    with pytest.raises(aliases.AliasMovedError):
        aliases.remove("contested", "champion", expected=second, uri=mlflow_uri)
    assert aliases.read("contested", uri=mlflow_uri) == {"champion": first}
    aliases.remove("contested", "champion", expected=first, uri=mlflow_uri)
    aliases.remove("contested", "champion", expected=first, uri=mlflow_uri)
    assert aliases.read("contested", uri=mlflow_uri) == {}


def test_no_mlflow_is_one_line_with_the_remedy():
    with pytest.raises(RetryableError, match="seatrial up") as caught:
        connect("http://127.0.0.1:9")
    assert "\n" not in str(caught.value)
