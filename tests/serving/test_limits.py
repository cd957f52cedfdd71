"""What a request may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from seatrial.config.service import HttpSection
from seatrial_serving.errors import HttpError
from seatrial_serving.limits import check, unit_of

HTTP = HttpSection(allow_anonymous=True, max_tokens=64, max_n=2)
MESSAGES = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    body = {"model": "svc", "messages": MESSAGES, **fields}
    check(body, HTTP, chat=True, model_tokens=48)
    return body


def completion(**fields: Any) -> dict[str, Any]:
    body = {"model": "svc", "prompt": "hello", **fields}
    check(body, HTTP, chat=False, model_tokens=512)
    return body


def test_a_request_without_max_tokens_gets_the_services_and_never_more_than_the_model_holds() -> None:
    assert chat()["max_tokens"] == 48
    assert completion()["max_tokens"] == 64
    assert "max_tokens" not in chat(max_completion_tokens=7)


def test_fields_of_openai_without_a_meaning_here_are_taken_out() -> None:
    assert "metadata" not in chat(metadata={"a": "b"}, store=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"structured_outputs": {"regex": "(a+)+"}}, "structured_outputs"),
        ({"guided_regex": "(a+)+"}, "guided_regex"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"request_id": "mine"}, "request_id"),
        ({"priority": -5}, "priority"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"stream": "false"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"n": 3}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1_000_000}, "max_completion_tokens"),
        ({"min_tokens": 65}, "min_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"pattern": "(a+)+"}}},
            "response_format",
        ),
        ({"tools": [{"function": {"parameters": {"$ref": "http://x/"}}}]}, "tools"),
        ({"tools": "all"}, "tools"),
    ],
)
def test_what_could_exhaust_the_engine_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HttpError) as refused:
        chat(**fields)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert refused.value.message.startswith(param.split("[")[0])


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file", None])
def test_media_are_refused_wherever_they_come_from(kind: str | None) -> None:
    part = {"type": kind, "image_url": {"url": "http://169.254.169.254/"}}
    with pytest.raises(HttpError, match="text"):
        chat(messages=[{"role": "user", "content": [part]}])
    chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}])


def test_prompts_count_as_answers() -> None:
    completion(prompt=[1, 2, 3], n=2)
    completion(prompt=["a", "b"])
    for prompt, n in ((["a", "b", "c"], 1), ([[1], [2]], 2), (None, 1)):
        with pytest.raises(HttpError) as refused:
            completion(prompt=prompt, n=n)
        assert refused.value.param == "prompt"


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "minProperties": 2},
        {"properties": {"a": {"maxProperties": 2}}},
        {"properties": {"properties": {"pattern": "(a+)+"}}},
        {"items": [{"pattern": "(a+)+"}]},
        {"properties": {"pattern": "(a+)+"}, "items": {"$ref": "#/properties"}},
        {"$defs": {"a": {"properties": {"pattern": "(a+)+"}}}, "$ref": "#/$defs/a/properties"},
        {"$ref": {"a": 1}},
        {"enum": ["x" * 20_000]},
        {"enum": [f"{number:03}" + "x" * 60 for number in range(300)]},
        {"properties": {f"{number:03}" + "x" * 90: {} for number in range(200)}},
        {"const": {"description": "x" * 20_000}},
        {"enum": ["\x01" * 4000]},
        {"$defs": {"a": {"enum": ["x" * 14_000]}}, "anyOf": [{"$ref": "#/$defs/a"}] * 100},
        {"enum": ["x" * 14_000], "anyOf": [{"$ref": "#"}] * 100},
    ],
)
def test_what_takes_the_grammars_compiler_for_ever_is_refused(schema: dict[str, Any]) -> None:
    for fields in (
        {"response_format": schema_format(schema)},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
    ):
        with pytest.raises(HttpError) as refused:
            chat(**fields)
        assert refused.value.param == next(iter(fields))


def test_a_schema_may_be_described_at_any_length() -> None:
    described = {"type": "string", "description": "x" * 20_000, "title": "y" * 20_000}
    chat(response_format=schema_format({"type": "object", "properties": {"a": described}}))
    function = {"name": "f", "description": "z" * 20_000, "parameters": described}
    chat(tools=[{"type": "function", "function": function}])


def test_properties_may_have_any_name() -> None:
    names = ("pattern", "$ref", "minProperties", "properties", "$defs")
    properties = {name: {"type": "string"} for name in names}
    for schema in ({"properties": properties}, {"$defs": properties, "$ref": "#/$defs/pattern"}):
        wanted = schema_format(schema)
        assert chat(response_format=wanted)["response_format"] == wanted


def test_the_prompts_logprobs_cannot_be_had_by_an_echo() -> None:
    completion(echo=True)
    completion(logprobs=2)
    with pytest.raises(HttpError) as refused:
        completion(echo=True, logprobs=0)
    assert refused.value.param == "logprobs"


def test_a_schema_of_ordinary_depth_passes_and_a_deep_one_does_not() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}
    chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    for _ in range(20):
        schema = {"items": schema}
    with pytest.raises(HttpError):
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def test_the_unit_is_the_user_then_the_header_then_nobody() -> None:
    assert unit_of({"user": "u"}, b"h") == "u"
    assert unit_of({}, b"h") == "h"
    assert unit_of({"user": ""}, None) is None
    assert unit_of({"user": "Zoë 🚢"}, None) == "Zoë 🚢"
    for wrong in ("x" * 257, 7, "a\0b", "a\nb", "\x85", "\ud800"):
        with pytest.raises(HttpError) as refused:
            unit_of({"user": wrong}, None)
        assert (refused.value.status, refused.value.param) == (400, "user")
    assert unit_of({}, "Zoë".encode()) == "Zoë"
    for unread in (b"a\x01b", "Zoë".encode("latin-1")):
        with pytest.raises(HttpError) as refused:
            unit_of({}, unread)
        assert (refused.value.status, refused.value.param) == (400, "X-Seatrial-Unit")
