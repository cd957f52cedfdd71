"""Versions and aliases against a real MLflow server."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seatrial.errors import RetryableError, UserError
from seatrial.registry import aliases, versions
from seatrial.registry.client import connect

pytestmark = pytest.mark.slow


def make_version(uri: str, folder: Path, name: str, fill: bytes = b"a") -> str:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(fill * 1000)
    manifest = versions.write_manifest(folder, kind="adapter", method="lora")
    client = connect(uri)
    run = client.create_run("0")
    client.log_artifacts(run.info.run_id, str(folder), "model")
    version = versions.register(name, run.info.run_id, manifest, uri=uri)
    assert versions.register(name, run.info.run_id, manifest, uri=uri) == version
    return version


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


def test_a_tampered_copy_and_a_replaced_artifact_are_refused(mlflow_uri: str, tmp_path: Path):
    version = make_version(mlflow_uri, tmp_path / "made", "tampered")
    folder = versions.download("tampered", version, tmp_path / "cache", uri=mlflow_uri)
    (folder / "adapter_model.safetensors").write_bytes(b"b" * 1000)
    with pytest.raises(UserError, match="changed after registration"):
        versions.download("tampered", version, tmp_path / "cache", uri=mlflow_uri)

    run_id = connect(mlflow_uri).get_model_version("tampered", version).run_id
    (tmp_path / "made" / "adapter_model.safetensors").write_bytes(b"c" * 1000)
    versions.write_manifest(tmp_path / "made", kind="adapter", method="lora")
    connect(mlflow_uri).log_artifacts(run_id, str(tmp_path / "made"), "model")
    with pytest.raises(UserError, match="the artifact was replaced"):
        versions.download("tampered", version, tmp_path / "other", uri=mlflow_uri)


def test_a_version_of_another_making_is_refused(mlflow_uri: str, tmp_path: Path):
    client = connect(mlflow_uri)
    client.create_registered_model("foreign")
    run = client.create_run("0")
    made = client.create_model_version("foreign", f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
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
