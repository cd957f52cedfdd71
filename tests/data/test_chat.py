"""Encoding: the loss is on the response and its end token, on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seatrial_jobs.data.chat import CHAT_TEMPLATE, IGNORED, encode, prompt_ids
from seatrial_jobs.data.read import Example, Message
from seatrial_jobs.tokenizer import SPECIAL_TOKENS, train_tokenizer


def example(*turns: tuple[str, str]) -> Example:
    return Example(tuple(Message(role, content) for role, content in turns), None, "rows.jsonl:1")


PAIR = example(("user", "Which module has sin?"), ("assistant", "math"))


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


def test_what_is_too_long_loses_the_start_of_the_prompt_first(tokenizer: Any) -> None:
    whole = encode(PAIR, tokenizer, 100)
    response = [label for label in whole.labels if label != IGNORED]
    cut = encode(PAIR, tokenizer, len(response) + 3)
    assert cut.input_ids == whole.input_ids[-len(response) - 3 :]
    assert cut.cut_tokens == len(whole.input_ids) - len(cut.input_ids)
    shortest = encode(PAIR, tokenizer, 1)
    assert (shortest.input_ids, shortest.labels) == (response[:1], response[:1])


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


def test_a_tokenizer_without_a_template_gets_the_default_one(tokenizer: Any) -> None:
    bare = train_tokenizer(["math sin"], 300)
    bare.chat_template = None
    assert bare.decode(encode(PAIR, bare, 100).input_ids) == (
        "<|user|>Which module has sin?<|end|><|assistant|>math<|end|>"
    )


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
