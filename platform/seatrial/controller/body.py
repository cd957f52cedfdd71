"""A request's body, of bounded size."""

from __future__ import annotations

from starlette.requests import Request


async def read_bounded(request: Request, most_bytes: int) -> bytes | None:
    """The raw body; None when it is longer than ``most_bytes``, of which no more is read."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most_bytes:
        return None
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            return None
    return bytes(body)
