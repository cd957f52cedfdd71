"""What an answer says of itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seatrial_serving.answers import MOST_KEPT_BYTES, Reader, texts_of

PHRASES = ("i cannot", "sorry")


def read(*pieces: bytes, is_stream: bool, keeps: bool = False) -> Reader:
    reader = Reader(PHRASES, keeps=keeps)
    for piece in pieces:
        reader.take(piece, is_stream=is_stream)
    return reader


def whole(content: str | None, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": None, **choice.pop("message", {})}
    usage = {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    return json.dumps({"choices": choices, "usage": usage}, separators=(",", ":")).encode()


def event(content: str, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": {"content": content}, **more}]
    return b"data: " + json.dumps({"choices": choices}, separators=(",", ":")).encode() + b"\n\n"


def test_tokens_are_read_from_the_usage() -> None:
    reader = read(whole("The ship sails."), is_stream=False)
    assert (reader.prompt_tokens, reader.completion_tokens) == (7, 2)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    reader = read(event("The"), usage, b"data: [DONE]\n\n", is_stream=True)
    assert (reader.prompt_tokens, reader.completion_tokens) == (7, 3)
    assert read(event("The"), is_stream=True).completion_tokens is None


@pytest.mark.parametrize(
    ("answer", "is_refused"),
    [
        (whole("The ship sails."), False),
        (whole("  Sorry, I will not."), True),
        (whole("I CANNOT say"), True),
        (whole("Nobody is sorry."), False),
        (whole(None, message={"refusal": "No."}), True),
        (whole("", finish_reason="content_filter"), True),
        (whole('they wrote "refusal":"x" and "finish_reason":"content_filter"'), False),
        (b'{"choices":[{"index":0,"text":" sorry","finish_reason":"stop"}]}', True),
        (b'{"error": {"message": "no"}}', False),
        (b'{"choices": [{"index": 0, "message": {"content": "Yes.", "refusal": null}}]}', False),
        (b"null", False),
    ],
)
def test_a_refusal_is_told_from_an_answer(answer: bytes, is_refused: bool) -> None:
    assert read(answer, is_stream=False).is_refused() is is_refused


def test_a_streamed_refusal_is_found_across_its_pieces() -> None:
    assert read(event("I "), event("cannot"), event(" help"), is_stream=True).is_refused()
    assert not read(event("Today I cannot"), is_stream=True).is_refused()
    assert read(event("The"), event("", finish_reason="content_filter"), is_stream=True).is_refused()


def test_the_texts_of_all_choices_are_kept_up_to_a_size() -> None:
    two = [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]
    assert texts_of(json.dumps({"choices": two}).encode()) == ("a", "b")
    stream = read(event("The "), event("ship"), b"data: [DONE]\n\n", is_stream=True, keeps=True)
    assert stream.texts() == ("The ship",)
    long = read(whole("x" * MOST_KEPT_BYTES), is_stream=False, keeps=True)
    assert long.texts() is None
    assert texts_of(b"nothing") is None


def test_calls_of_tools_belong_to_what_an_answer_says() -> None:
    def calling(name: str, arguments: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, "id": "any", "function": {"name": name, "arguments": arguments}}]}

    first, other = (whole(None, message=calling("look_up", text)) for text in ('{"a": 1}', '{"a": 2}'))
    assert texts_of(first) == ('look_up{"a": 1}',)
    assert texts_of(first) != texts_of(other)
    parts = [{"delta": calling("look_up", '{"a"')}, {"delta": calling("", ": 1}")}]
    events = [json.dumps({"choices": [{"index": 0, **part}]}).encode() for part in parts]
    assert texts_of(b"".join(b"data: " + each + b"\n\n" for each in events)) == texts_of(first)
