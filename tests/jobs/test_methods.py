"""The table of methods, what each trains and saves, and methods of other packages."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from seatrial.config.method import FullMethod, LoraMethod
from seatrial.errors import UserError
from seatrial.registry.manifest import BaseRef, verify
from seatrial_jobs import methods
from seatrial_jobs.export.version import write_version
from seatrial_jobs.prepare import load_tokenizer

BASE = BaseRef(ref="models:/base/3", digest="d" * 64)


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def save(model: Any, section: Any, tiny_base: Path, folder: Path) -> Any:
    method = methods.build(section)
    prepared = method.prepare(model)
    write_version(
        folder,
        prepared,
        method,
        name=section.type,
        tokenizer=load_tokenizer(tiny_base),
        base=BASE,
        data_digest="data",
        code_digest="code",
        run_id="run",
    )
    return prepared


def test_full_trains_every_weight_and_saves_a_whole_model(model: Any, tiny_base: Path, tmp_path: Path):
    prepared = save(model, FullMethod(type="full"), tiny_base, tmp_path)
    assert all(parameter.requires_grad for parameter in prepared.parameters())
    manifest = verify(tmp_path)
    assert (manifest.kind, manifest.method, manifest.rank) == ("full", "full", None)
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(
        manifest.files
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(6, 30)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert load_tokenizer(tmp_path).chat_template == load_tokenizer(tiny_base).chat_template


def test_lora_trains_adapters_alone_and_starts_at_the_base(model: Any, tiny_base: Path, tmp_path: Path):
    ids = torch.arange(6, 30)[None]
    before = model(ids).logits
    prepared = save(model, LoraMethod(type="lora", rank=4), tiny_base, tmp_path)
    trained = {name for name, parameter in prepared.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert torch.equal(prepared(ids).logits, before)
    manifest = verify(tmp_path)
    assert (manifest.kind, manifest.rank, manifest.base) == ("adapter", 4, BASE)
    assert set(manifest.files) == {"adapter_model.safetensors", "adapter_config.json"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE.ref
    assert config["r"] == 4
    assert config["target_modules"] == sorted(config["target_modules"])


def test_layers_that_are_not_there_are_a_user_error(model: Any):
    method = methods.build(LoraMethod(type="lora", targets=("no_such_layer",)))
    with pytest.raises(UserError, match=r"method\.targets.*no_such_layer"):
        method.prepare(model)


def test_another_package_adds_a_method_by_its_entry_point(monkeypatch: pytest.MonkeyPatch):
    point = EntryPoint("theirs", f"{__name__}:Theirs", methods.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Theirs)
    monkeypatch.setattr(methods, "entry_points", lambda group: [point] if group == methods.GROUP else [])
    section = SimpleNamespace(type="theirs")
    assert methods.build(section).section is section  # type: ignore[attr-defined]


def test_an_unknown_method_is_a_user_error():
    with pytest.raises(UserError, match="'none': no such method: use one of full, lora"):
        methods.build(SimpleNamespace(type="none"))


class Theirs:
    kind = "full"

    def __init__(self, section: Any) -> None:
        self.section = section
