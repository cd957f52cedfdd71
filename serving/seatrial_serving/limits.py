"""What a request may ask for. Every field that is not listed here is refused by name."""

from __future__ import annotations

import re
from typing import Any

from seatrial.config.service import HttpSection
from seatrial_serving.errors import HttpError, bad
from seatrial_serving.request import encode

Body = dict[str, Any]

# Sampling fields of OpenAI's API, and those of vLLM's that cannot be used to exhaust the engine.
_COMMON_FIELDS = """
    model frequency_penalty logit_bias logprobs max_tokens n presence_penalty response_format seed stop
    stream stream_options temperature top_p user top_k min_p repetition_penalty min_tokens
    stop_token_ids ignore_eos skip_special_tokens include_stop_str_in_output bad_words
"""
_CHAT_FIELDS = """
    messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls reasoning_effort
    add_generation_prompt continue_final_message
"""
CHAT = frozenset((_COMMON_FIELDS + _CHAT_FIELDS).split())
COMPLETION = frozenset((_COMMON_FIELDS + "prompt best_of echo").split())
# Fields of OpenAI's API that have no meaning here: taken out, so that its clients need no change.
IGNORED = frozenset(
    ("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")
)

MAX_LOGPROBS = 20  # what vLLM allows by default, and OpenAI too
MAX_LIST = 64
MAX_LOGIT_BIAS = 300
MAX_SCHEMA_DEPTH = 12
MAX_SCHEMA_NODES = 500
# Bytes of names and literals: the engine compiles them letter by letter (xgrammar: 0.7 s for 16 thousand,
# minutes for 240 thousand).
MAX_SCHEMA_BYTES = 2**14
# The same, a definition counted once more for each reference to one, which compiles it again.
MAX_COMPILED_BYTES = 2**16
# What people read: not compiled, unless it stands within a literal.
REMARKS = frozenset({"description", "title", "$comment"})
LITERALS = frozenset({"const", "enum"})
DEFINITIONS = frozenset({"$defs", "definitions"})
# What the engine compiles into automata that may take for ever: regular expressions, and sets of properties
# of which so many must or may be there (xgrammar: 8 s for 200 properties).
REFUSED_SCHEMA_KEYS = frozenset(
    {"pattern", "patternProperties", "$dynamicRef", "minProperties", "maxProperties"}
)
# Keywords whose object maps names to schemas; the names themselves say nothing.
SCHEMA_MAPS = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
# A reference to anything else could make a map of names into a schema.
LOCAL_REF = re.compile(r"#(/(\$defs|definitions)/[^/]+)?")
MAX_UNIT_CHARS = 256
# Control characters and halves of surrogate pairs: no database keeps all of them as text.
NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check(body: Body, http: HttpSection, *, chat: bool, model_tokens: int) -> None:
    """Refuse what the service does not allow, and fill in `max_tokens`. Changes ``body``.

    ``model_tokens`` is the engine's longest prompt plus answer, in tokens.

    Raises:
        HttpError: 400, naming the field.
    """
    for name in body.keys() & IGNORED:
        del body[name]
    allowed = CHAT if chat else COMPLETION
    unknown = body.keys() - allowed
    if unknown:
        name = min(unknown)
        raise HttpError(
            400, f"{name}: not accepted by this endpoint: remove it", param=name, code="unknown_field"
        )
    if not isinstance(body.get("stream"), bool | None):
        raise bad("stream", body["stream"], "give true or false")
    n = _whole(body, "n", 1, http.max_n)
    _max_tokens(body, http, chat=chat, model_tokens=model_tokens)
    _logprobs(body, chat=chat)
    _lists(body)
    if chat:
        _messages(body.get("messages"))
        _tools(body)
    else:
        _whole(body, "best_of", 1, http.max_n)
        _prompts(body.get("prompt"), n or 1, http.max_n)
    _response_format(body.get("response_format"))


def unit_of(body: Body, header: bytes | None) -> str | None:
    """Who asks: the `user` field, else the `X-Seatrial-Unit` header, else None.

    Raises:
        HttpError: 400, it cannot be kept as text.
    """
    name, unit = "user", body.get("user")
    if unit is None and header:
        name = "X-Seatrial-Unit"
        try:
            unit = header.decode()
        except UnicodeDecodeError as error:
            raise bad(name, header, "give text in UTF-8") from error
    if unit is None or unit == "":
        return None
    if not isinstance(unit, str) or len(unit) > MAX_UNIT_CHARS or NO_TEXT.search(unit):
        raise bad(name, unit, f"give at most {MAX_UNIT_CHARS} characters, no control characters among them")
    return unit


def _whole(body: Body, name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise bad(name, value, f"give a whole number from {least} to {most}")
    return value


def _max_tokens(body: Body, http: HttpSection, *, chat: bool, model_tokens: int) -> None:
    given = _whole(body, "max_tokens", 1, http.max_tokens)
    if chat:
        given = _whole(body, "max_completion_tokens", 1, http.max_tokens) or given
    if given is None:
        # vLLM refuses a `max_tokens` above the model's length, and shortens it to what the prompt leaves.
        body["max_tokens"] = min(http.max_tokens, model_tokens)
    _whole(body, "min_tokens", 0, http.max_tokens)


def _logprobs(body: Body, *, chat: bool) -> None:
    if body.get("echo") and body.get("logprobs") is not None:
        raise bad("logprobs", body["logprobs"], "not with `echo`: it would ask for those of the prompt")
    if chat:
        if body.get("logprobs") not in (None, True, False):
            raise bad("logprobs", body["logprobs"], "give true or false")
        _whole(body, "top_logprobs", 0, MAX_LOGPROBS)
    else:
        _whole(body, "logprobs", 0, MAX_LOGPROBS)


def _lists(body: Body) -> None:
    for name in ("stop", "stop_token_ids", "bad_words"):
        value = body.get(name)
        if isinstance(value, list) and len(value) > MAX_LIST:
            raise bad(name, f"{len(value)} items", f"give at most {MAX_LIST}")
    bias = body.get("logit_bias")
    if isinstance(bias, dict) and len(bias) > MAX_LOGIT_BIAS:
        raise bad("logit_bias", f"{len(bias)} items", f"give at most {MAX_LOGIT_BIAS}")
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or options.keys() - {"include_usage"}):
        raise bad("stream_options", options, 'give {"include_usage": true}')


def _messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise bad("messages", messages, "give a list of messages")
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if kind != "text":
                    raise bad(f"messages[{index}].content", kind, "only parts of type `text` are accepted")
        elif not isinstance(message, dict):
            raise bad(f"messages[{index}]", message, "give an object with `role` and `content`")


def _prompts(prompt: object, n: int, most: int) -> None:
    if prompt is None:
        raise bad("prompt", prompt, "give a text")
    many = isinstance(prompt, list) and any(isinstance(item, str | list) for item in prompt)
    count = len(prompt) * n if many and isinstance(prompt, list) else n
    if count > most:
        raise bad("prompt", f"{count} answers", f"prompts times `n` may be at most {most}")


def _tools(body: Body) -> None:
    tools = body.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list) or len(tools) > MAX_LIST:
        raise bad("tools", type(tools).__name__, f"give a list of at most {MAX_LIST}")
    _schema(tools, "tools")


def _response_format(value: object) -> None:
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise bad("response_format", kind, "give type `text`, `json_object` or `json_schema`")
    _schema(value, "response_format")


def _schema(root: object, param: str) -> None:
    """Bound a JSON schema: the engine compiles it into an automaton."""
    pending, nodes = [(root, 0, False)], 0
    while pending:
        value, depth, is_map = pending.pop()
        nodes += 1
        if depth > MAX_SCHEMA_DEPTH or nodes > MAX_SCHEMA_NODES:
            raise bad(param, "schema", f"at most {MAX_SCHEMA_DEPTH} levels and {MAX_SCHEMA_NODES} nodes")
        if isinstance(value, dict):
            if not is_map:
                _keywords(value, param)
            pending += [(item, depth + 1, not is_map and key in SCHEMA_MAPS) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(item, depth + 1, False) for item in value]
    _text(root, param)


def _text(root: object, param: str) -> None:
    """Bound the names and literals of a JSON schema, as often as they are compiled."""
    definitions: list[int] = [0]
    refs: list[object] = []
    size = _size(root, definitions, refs)
    largest = size if "#" in refs else max(definitions)
    if size > MAX_SCHEMA_BYTES or size + len(refs) * largest > MAX_COMPILED_BYTES:
        most = f"at most {MAX_SCHEMA_BYTES} bytes, {MAX_COMPILED_BYTES} with those that `$ref` repeats"
        raise bad(param, "schema", f"names and literals: {most}")


def _size(value: object, definitions: list[int], refs: list[object], *, is_literal: bool = False) -> int:
    """Bytes of names and literals; notes the size of each definition, and each reference."""
    if isinstance(value, str):
        return len(encode(value))
    if isinstance(value, list):
        return sum(_size(item, definitions, refs, is_literal=is_literal) for item in value)
    if not isinstance(value, dict):
        return 0
    size = 0
    for key, item in value.items():
        size += len(encode(key))
        if not is_literal and key in REMARKS and isinstance(item, str):
            continue
        if not is_literal and key in DEFINITIONS and isinstance(item, dict):
            sizes = [_size(each, definitions, refs) for each in item.values()]
            definitions += sizes
            size += sum(sizes) + sum(len(encode(name)) for name in item)
            continue
        if not is_literal and key == "$ref":
            refs.append(item)
        size += _size(item, definitions, refs, is_literal=is_literal or key in LITERALS)
    return size


def _keywords(schema: Body, param: str) -> None:
    refused = REFUSED_SCHEMA_KEYS & schema.keys()
    if refused:
        raise bad(param, min(refused), "schemas with this keyword are refused")
    ref = schema.get("$ref", "#")
    if not isinstance(ref, str) or not LOCAL_REF.fullmatch(ref):
        raise bad(param, ref, "a schema may refer to itself and to its own $defs only")
