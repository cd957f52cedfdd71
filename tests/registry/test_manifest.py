"""The manifest: what a version may hold, and that a changed file is found."""

import json
from pathlib import Path

import pytest

from seatrial.errors import UserError
from seatrial.registry.manifest import folder_digest, read_manifest, verify, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    return tmp_path


def test_what_was_written_verifies_and_reads_back(folder: Path):
    written = write_manifest(folder, kind="full", method="full", data_digest="d")
    assert verify(folder) == written == read_manifest(folder)
    assert set(written.files) == {"model.safetensors", "config.json"}


def test_the_digest_is_that_of_the_files_alone(folder: Path):
    before = folder_digest(folder)
    assert write_manifest(folder, kind="full", method="full").digest == before
    assert folder_digest(folder) == before


def test_one_changed_byte_is_found(folder: Path):
    write_manifest(folder, kind="full", method="full")
    (folder / "model.safetensors").write_bytes(b"\0" * 63 + b"\1")
    with pytest.raises(UserError, match=r"model.safetensors: sha256 .* changed after registration"):
        verify(folder)


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "code.py", "x.pkl", "README.md"])
def test_a_forbidden_file_is_named(folder: Path, name: str):
    (folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{name}: forbidden file type"):
        write_manifest(folder, kind="full", method="full")


def test_a_file_added_later_is_named(folder: Path):
    write_manifest(folder, kind="full", method="full")
    (folder / "extra.json").write_text("{}")
    with pytest.raises(UserError, match=r"extra.json: not in the manifest"):
        verify(folder)


def test_a_missing_file_is_named(folder: Path):
    write_manifest(folder, kind="full", method="full")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: missing file"):
        verify(folder)


def test_remote_code_is_refused(folder: Path):
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UserError, match="auto_map: asks for remote code"):
        write_manifest(folder, kind="full", method="full")


def test_a_link_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    target = tmp_path_factory.mktemp("elsewhere") / "secret.json"
    target.write_text("{}")
    (folder / "link.json").symlink_to(target)
    with pytest.raises(UserError, match="a link"):
        write_manifest(folder, kind="full", method="full")


def test_a_manifest_cannot_point_outside(folder: Path):
    write_manifest(folder, kind="full", method="full")
    content = json.loads((folder / "seatrial.json").read_text())
    content["files"]["../outside.json"] = {"sha256": "0", "size_bytes": 0}
    (folder / "seatrial.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="must stay inside"):
        verify(folder)


def test_no_manifest_and_an_empty_folder_say_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="missing manifest"):
        verify(tmp_path)
    with pytest.raises(UserError, match="no files"):
        write_manifest(tmp_path, kind="full", method="full")
