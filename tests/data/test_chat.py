"""Encoding: the loss is on the response and its end token, on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seatrial.registry.bases import CHAT_TEMPLATE
from seatrial_jobs.data.chat import IGNORED, Encoded, lead_in, prompt_ids
from seatrial_jobs.data.chat import encode as encode_all
from seatrial_jobs.data.read import Example, Message
from seatrial_jobs.prepare import load_tokenizer
from seatrial_jobs.tokenizer import SPECIAL_TOKENS, train_tokenizer


def example(*turns: tuple[str, str]) -> Example:
    return Example(tuple(Message(role, content) for role, content in turns), "rows.jsonl:1")


PAIR = example(("user", "Which module has sin?"), ("assistant", "math"))


def encode(conversation: Example, tokenizer: Any, max_tokens: int) -> Encoded:
    [document] = encode_all(conversation, tokenizer, max_tokens)
    return document


def learnt(encoded: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in encoded.labels if label != IGNORED]))


def test_only_the_last_response_and_its_end_token_are_learnt(tokenizer: Any) -> None:
    talk = example(
        ("system", "Be brief."),
        ("user", "sin?"),
        ("assistant", "math"),
        ("user", "fork?"),
        ("assistant", "os"),
    )
    encoded = encode(talk, tokenizer, 100)
    assert learnt(encoded, tokenizer) == "os<|end|>"
    assert tokenizer.decode(encoded.input_ids) == (
        "<|system|>Be brief.<|end|><|user|>sin?<|end|><|assistant|>math<|end|>"
        "<|user|>fork?<|end|><|assistant|>os<|end|>"
    )
    assert encoded.input_ids[: len(prompt_ids(talk, tokenizer))] == prompt_ids(talk, tokenizer)


def test_plain_text_is_learnt_whole(tokenizer: Any) -> None:
    encoded = encode(example(("text", "math.sin(x)")), tokenizer, 100)
    assert encoded.labels == encoded.input_ids
    assert tokenizer.decode(encoded.input_ids) == "math.sin(x)<|end|>"


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 16, 100])
def test_a_text_longer_than_a_row_is_split_and_every_token_but_the_first_is_learnt_once(
    tokenizer: Any, max_tokens: int
) -> None:
    text = "Which module has ZipFile.writestr? zipfile, not math and not asyncio."
    whole = [*tokenizer.encode(text), tokenizer.eos_token_id]
    pieces = encode_all(example(("text", text)), tokenizer, max_tokens)
    assert all(2 <= len(piece.input_ids) <= max_tokens for piece in pieces)
    assert not any(piece.cut_tokens for piece in pieces)
    assert {piece.line for piece in pieces} == {1}
    assert [token for piece in pieces for token in piece.labels[1:]] == whole[1:]


def test_what_is_too_long_loses_the_start_of_the_prompt_first(tokenizer: Any) -> None:
    whole = encode(PAIR, tokenizer, 100)
    response = [label for label in whole.labels if label != IGNORED]
    cut = encode(PAIR, tokenizer, len(response) + 3)
    assert cut.input_ids == whole.input_ids[-len(response) - 3 :]
    assert cut.cut_tokens == len(whole.input_ids) - len(cut.input_ids)
    assert whole.ends
    assert cut.ends
    shortest = encode(PAIR, tokenizer, 2)
    assert (shortest.input_ids, shortest.labels) == (response[:2], response[:2])
    assert not shortest.ends


def test_a_tokenizers_own_template_is_used_and_what_follows_its_end_token_is_not_learnt(
    tokenizer: Any,
) -> None:
    own = train_tokenizer(["math sin"], 300)
    own.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    encoded = encode(PAIR, own, 100)
    assert own.decode(encoded.input_ids) == "[user] Which module has sin?<|end|>\n[assistant] math<|end|>"
    assert learnt(encoded, own) == "math<|end|>"


def test_a_template_that_writes_answered_turns_differently_still_gives_the_response(tokenizer: Any) -> None:
    own = train_tokenizer(["math sin"], 300)
    own.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think>{% endif %}"
    )
    encoded = encode(PAIR, own, 100)
    assert own.decode(encoded.input_ids).endswith("assistant: <think>math<|end|>")
    assert learnt(encoded, own) == "math<|end|>"


QWEN3 = (
    "{%- for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{ m.content.strip() + eos_token + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)
"""Qwen3's way with the last answer: an empty block of reasoning before it."""


@pytest.mark.parametrize("response", ["math", " math\n", "think", "<think> or not", "math <|end|> end"])
def test_what_the_template_puts_before_the_response_is_told_apart_from_it(
    tokenizer: Any, response: str
) -> None:
    own = train_tokenizer(["math sin"], 300)
    own.chat_template = QWEN3
    pair = example(("user", "Which module has sin?"), ("assistant", response))
    assert learnt(encode(pair, own, 200), own) == f"<think>\n\n</think>\n\n{response.strip()}<|end|>"
    assert lead_in(pair, own) == "<think>\n\n</think>"
    assert lead_in(pair, tokenizer) == ""


def test_a_tokenizer_without_a_template_gets_the_default_one_and_keeps_it(tmp_path: Path) -> None:
    bare = train_tokenizer(["math sin"], 300)
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    loaded = load_tokenizer(tmp_path / "bare")
    assert loaded.decode(encode(PAIR, loaded, 100).input_ids) == (
        "<|user|>Which module has sin?<|end|><|assistant|>math<|end|>"
    )
    loaded.save_pretrained(tmp_path / "saved", save_jinja_files=False)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == CHAT_TEMPLATE


def test_a_tokenizer_that_brings_code_is_not_run_even_when_somebody_would_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "config.json").write_text('{"model_type": "theirs", "auto_map": {"AutoConfig": "evil.C"}}')
    automatic = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(automatic))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass T: pass\nC = T\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_tokenizer_loses_no_byte_and_is_the_same_every_time(tokenizer: Any) -> None:
    strange = "tab\t naïve 漢字 🚢 \x00 end"
    assert tokenizer.decode(tokenizer.encode(strange)) == strange
    texts = ["one two three four five six seven"] * 3 + ["alpha beta gamma delta"] * 2
    assert (
        train_tokenizer(texts, 320).backend_tokenizer.to_str()
        == train_tokenizer(texts, 320).backend_tokenizer.to_str()
    )


def test_a_saved_tokenizer_is_json_alone_and_keeps_its_template(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path, save_jinja_files=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == CHAT_TEMPLATE
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert encode(PAIR, loaded, 100) == encode(PAIR, tokenizer, 100)
