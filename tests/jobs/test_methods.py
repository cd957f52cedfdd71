"""The table of methods, what each trains and saves, and methods of other packages."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

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


@pytest.fixture
def model_that_sees() -> Any:
    """A Gemma 3 with a vision tower."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
    }
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=399,
        boi_token_index=397,
        eoi_token_index=398,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize(
    "section", [FullMethod(type="full"), LoraMethod(type="lora", rank=4)], ids=lambda section: section.type
)
def test_what_text_does_not_reach_is_not_trained(model_that_sees: Any, section: Any):
    prepared = methods.build(section).prepare(model_that_sees)
    ids = torch.arange(6, 30)[None]
    prepared(input_ids=ids, use_cache=False).logits.sum().backward()
    trained = {name: p.grad for name, p in prepared.named_parameters() if p.requires_grad}
    assert any("language_model" in name for name in trained)
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert not any("vision" in name or "projector" in name for name in trained)


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
