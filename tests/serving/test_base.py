"""Base models that must not reach an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from seatrial.config.service import HttpSection
from seatrial.errors import UserError
from seatrial.registry import versions
from seatrial_serving.base import resolve
from seatrial_serving.spec import MOST_REQUEST_S, Spec, choose_device, engine_kwargs


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_directory_is_named_by_the_digest_that_its_manifest_would_have(model: Path, tmp_path: Path) -> None:
    found = resolve(str(model), None, tmp_path)
    assert found.path == model
    assert found.digest == versions.write_manifest(model, kind="full", method="full").digest


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        resolve("/nowhere/at/all", None, tmp_path)


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        resolve(str(model), None, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UserError, match="remote code"):
        resolve(str(model), None, tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve(str(tmp_path), None, tmp_path)


def test_the_engine_never_runs_code_nor_unpickles() -> None:
    spec = Spec.model_validate({"service": {"name": "svc", "engine": {"base": "x"}}})
    for device in ("cpu", "gpu"):
        kwargs = engine_kwargs(spec.service.engine, device=device, lora=True)
        assert kwargs["trust_remote_code"] is False
        assert kwargs["load_format"] == "safetensors"


def test_a_model_for_several_gpus_never_lands_on_a_cpu() -> None:
    engine = Spec.model_validate(
        {"service": {"name": "svc", "engine": {"base": "x", "tensor_parallel": 2}}}
    ).service.engine
    assert choose_device(engine, 2) == "gpu"
    with pytest.raises(UserError, match=r"engine\.tensor_parallel: 2: the cluster has 1 GPUs"):
        choose_device(engine, 1)
    single = engine.model_copy(update={"tensor_parallel": 1})
    assert [choose_device(single, gpus) for gpus in (0, 1)] == ["cpu", "gpu"]
    assert choose_device(engine.model_copy(update={"device": "gpu"}), 0) == "gpu"


def test_a_replica_that_is_replaced_outlives_the_longest_request() -> None:
    HttpSection(allow_anonymous=True, request_timeout_s=MOST_REQUEST_S)
    with pytest.raises(ValidationError):
        HttpSection(allow_anonymous=True, request_timeout_s=MOST_REQUEST_S + 1)
