"""Read one request: headers, body, identity."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from seatrial_serving.errors import Header, HttpError, Message, Receive, Scope

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
MOST_LEVELS = 64
ID_PREFIXES = ("chatcmpl-", "cmpl-")

_decode = msgspec.json.Decoder(dict[str, Any]).decode
encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Head:
    """The headers that matter.

    ``request_id`` is made here: the client's own may be repeated, so nothing is keyed by it. ``client_id`` is
    the client's, for logs.
    """

    authorization: bytes | None
    host: bytes
    origin: bytes | None
    """Where the page is from that made a browser send this."""
    request_id: str
    client_id: str
    unit: bytes | None
    length: int | None


def read_head(scope: Scope) -> Head:
    """Take what matters from the headers, and give the request an id of its own."""
    found: dict[bytes, bytes] = dict(scope["headers"])
    given = found.get(b"x-request-id", b"").decode("latin-1")
    length = found.get(b"content-length", b"")
    return Head(
        authorization=found.get(b"authorization"),
        host=found.get(b"host", b""),
        origin=found.get(b"origin"),
        request_id=uuid.uuid4().hex,
        client_id=given if REQUEST_ID.fullmatch(given) else "",
        unit=found.get(b"x-seatrial-unit"),
        length=int(length) if length.isdigit() else None,
    )


async def read_body(receive: Receive, head: Head, most_bytes: int) -> bytes:
    """The whole body.

    Raises:
        HttpError: 413 when it is larger than ``most_bytes``; 499 when the client went away.
    """
    if head.length is not None and head.length > most_bytes:
        raise _too_large(most_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(499, "client disconnected")
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > most_bytes:
            raise _too_large(most_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(most_bytes: int) -> HttpError:
    return HttpError(413, f"body: larger than {most_bytes} bytes: send less", param="body", code="too_large")


def parse(body: bytes) -> dict[str, Any]:
    """The body as an object.

    Raises:
        HttpError: 400, it is none, or is nested so deeply that the engine could not read it.
    """
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"body: no JSON object ({error})", param="body", code="invalid_json") from error
    if body.count(b"[") + body.count(b"{") > MOST_LEVELS and _is_deeper(found, MOST_LEVELS):
        raise HttpError(400, f"body: more than {MOST_LEVELS} levels", param="body", code="invalid_json")
    return found


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested more than ``levels`` deep."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
    return bool(level)


def forwarded_scope(scope: Scope, head: Head, body: bytes) -> Scope:
    """The scope that the engine's app sees: no header of the client's but those that it needs."""
    headers: list[Header] = [
        (b"host", b"seatrial"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", head.request_id.encode()),
    ]
    return {**scope, "headers": headers}


def replay(body: bytes, receive: Receive) -> Receive:
    """A receive channel that gives ``body`` whole, and then whatever the client does (it may go away)."""
    first: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def receive_again() -> Message:
        nonlocal first
        if first is not None:
            message, first = first, None
            return message
        return await receive()

    return receive_again


def bare_request_id(text: str) -> str:
    """The request id inside the `id` of an answer."""
    for prefix in ID_PREFIXES:
        if text.startswith(prefix):
            return text[len(prefix) :]
    return text
