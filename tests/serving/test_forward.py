"""Driving an ASGI app of this process, piece by piece."""

from __future__ import annotations

import asyncio

import pytest

from seatrial_serving.errors import Receive, Scope, Send
from seatrial_serving.forward import Part, drive


async def chatty(scope: Scope, receive: Receive, send: Send) -> None:
    """Says much more than the queue between it and its reader holds."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a")]})
    for number in range(200):
        await send({"type": "http.response.body", "body": b"%d;" % number, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def test_the_answer_comes_whole_and_in_order() -> None:
    parts: list[Part] = [part async for part in drive(chatty, "/x", b"{}", "r1")]
    assert parts[0] == (200, [(b"content-type", b"a")])
    assert b"".join(part for part in parts[1:] if isinstance(part, bytes)).startswith(b"0;1;2;")
    assert len(parts) == 201


async def test_leaving_in_the_middle_ends_the_apps_work() -> None:
    before = asyncio.all_tasks()
    parts = drive(chatty, "/x", b"{}", "r1")
    await anext(parts)
    await asyncio.sleep(0.01)  # the queue is full now
    await parts.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


async def test_an_app_that_breaks_raises_after_what_it_said() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("boom")

    parts = drive(breaks, "/x", b"{}", "r1")
    assert await anext(parts) == (200, [])
    with pytest.raises(RuntimeError, match="boom"):
        await anext(parts)
