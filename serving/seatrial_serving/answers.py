"""Read an answer as it passes: how many tokens it cost, what it says, and whether it is a refusal."""

from __future__ import annotations

import re
from typing import Any

import msgspec

PROMPT_TOKENS = re.compile(rb'"prompt_tokens": ?(\d+)')
COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
# Quotes inside of texts are escaped, so these match the answer's own fields only.
REFUSED = re.compile(rb'"finish_reason": ?"content_filter"|"refusal":(?! ?null)')
EVENT = b"data: "
# How vLLM tells a streaming client that the engine failed after the answer had begun.
STREAM_ERROR = b'data: {"error"'
# Enough for any phrase with which a refusal begins, and for the answers that a shadow's are compared with.
MOST_KEPT_BYTES = 2**16
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Reader:
    """Sees the pieces of one answer, and keeps what is asked of it later.

    ``phrases`` are those with which a refusal begins, in lower case; ``keeps`` whether the whole text is
    wanted.
    """

    def __init__(self, phrases: tuple[str, ...] = (), *, keeps: bool = False) -> None:
        self._phrases = phrases
        self._most = MOST_KEPT_BYTES if keeps or phrases else 0
        self._kept: list[bytes] = []
        self._size = 0
        self._last = b""
        self._is_refused = False

    def take(self, piece: bytes, *, is_stream: bool) -> None:
        """The next piece of the body."""
        if not is_stream or b'"usage":{' in piece:
            self._last = piece
        if b'"content_filter"' in piece or b'"refusal":' in piece:
            self._is_refused = self._is_refused or REFUSED.search(piece) is not None
        if self._size < self._most:
            self._kept.append(piece)
            self._size += len(piece)

    @property
    def last(self) -> bytes:
        """The piece that tells the tokens, or what went wrong."""
        return self._last

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, None when the answer does not say."""
        return _number(PROMPT_TOKENS, self._last)

    @property
    def completion_tokens(self) -> int | None:
        """Tokens of the answer, None when it does not say."""
        return _number(COMPLETION_TOKENS, self._last)

    def texts(self) -> tuple[str, ...] | None:
        """The text of each choice, in order; None when the answer is too long or no answer."""
        return None if self._size >= MOST_KEPT_BYTES else texts_of(b"".join(self._kept))

    def is_refused(self) -> bool:
        """Whether it is a refusal: filtered, with a `refusal` of its own, or begun with a phrase."""
        if self._is_refused or not self._phrases:
            return self._is_refused
        texts = texts_of(b"".join(self._kept)) or ()
        return any(text.lstrip().lower().startswith(self._phrases) for text in texts)


def texts_of(body: bytes) -> tuple[str, ...] | None:
    """Text and tool calls of each choice of an answer, of a stream up to where it breaks off; else None."""
    found: dict[int, list[str]] = {}
    events = [body] if not body.startswith(EVENT) else _events(body)
    for event in events:
        try:
            choices = _decode(event)["choices"]
            for choice in choices:
                part = choice.get("message") or choice.get("delta") or choice
                said = str(part.get("text") or part.get("content") or "")
                found.setdefault(int(choice["index"]), []).append(said + _calls(part))
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError):
            if event is body:
                return None
    return tuple("".join(found[index]) for index in sorted(found))


def _calls(part: dict[str, Any]) -> str:
    """Names and arguments of the tools that are called; their ids are random."""
    functions = [call.get("function") or {} for call in part.get("tool_calls") or ()]
    return "".join(f"{each.get('name') or ''}{each.get('arguments') or ''}" for each in functions)


def _events(body: bytes) -> list[bytes]:
    return [event.removeprefix(EVENT) for event in body.split(b"\n\n") if event.startswith(EVENT)]


def _number(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    found = pattern.search(text)
    return int(found[1]) if found else None
