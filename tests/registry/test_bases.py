"""The check that training and serving share: what a base model may not be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seatrial.errors import UserError
from seatrial.registry import bases


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_directory_is_found_from_the_root_and_pinned_by_its_whole_path(
    folder: Path, tmp_path: Path
) -> None:
    found = bases.resolve("./", None, field="model.base", cache=tmp_path, root=folder)
    assert (found.path, found.ref_pinned) == (folder, str(folder))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", {"auto_map": {"AutoModel": "theirs.Model"}}, "auto_map: asks for remote code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.T", None]}}, "asks for remote code"),
        ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "t.P"}}, "asks for remote code"),
        ("config.json", ["a list"], "holds no JSON object"),
    ],
)
def test_a_model_that_asks_for_code_is_refused_in_one_line(
    folder: Path, name: str, content: object, reason: str
) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^model.base: x: {name}: .*{reason}") as refused:
        bases.check_folder(folder, "model.base: x")
    assert "\n" not in str(refused.value)


def test_a_vocabulary_may_hold_any_word(folder: Path) -> None:
    def is_refused(name: str) -> bool:
        (folder / name).write_text(json.dumps({"auto_map": 17}))
        try:
            bases.check_folder(folder, "model.base: x")
        except UserError:
            return True
        return False

    assert not is_refused("vocab.json")
    assert is_refused("generation_config.json")


def test_a_chat_template_is_found_wherever_transformers_keeps_it(folder: Path) -> None:
    assert not bases.has_chat_template(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": None}))
    assert not bases.has_chat_template(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": bases.CHAT_TEMPLATE}))
    assert bases.has_chat_template(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text(bases.CHAT_TEMPLATE)
    assert bases.has_chat_template(folder)
