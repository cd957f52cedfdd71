"""Driving an ASGI app of this process, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from seatrial_serving import forward
from seatrial_serving.errors import Receive, Scope, Send
from seatrial_serving.forward import ACCEPTED, Forwarder, Part, drive
from seatrial_serving.traffic import UnreachableError


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


class Answer:
    """Answers as Serve's handles do, after ``wait`` is set."""

    def __init__(self, wait: asyncio.Event) -> None:
        self.is_cancelled = False
        self._parts = self._all(wait)

    async def _all(self, wait: asyncio.Event) -> AsyncIterator[Part]:
        await wait.wait()
        yield ACCEPTED
        yield 200, []

    def __aiter__(self) -> AsyncIterator[Part]:
        return self._parts

    def __anext__(self) -> Any:
        return anext(self._parts)

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def remote(self, *_: Any) -> Answer:
        return self._answer


async def test_an_application_without_a_replica_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "ACCEPT_TIMEOUT_S", 0.05)
    wait = asyncio.Event()
    forwarder, answer = Forwarder(), Answer(wait)
    monkeypatch.setattr(forwarder, "_handle", lambda _: Handle(answer))
    with pytest.raises(UnreachableError, match="svc--v4: TimeoutError"):
        await forwarder.stream("svc--v4", "/x", b"{}", "r1")
    assert answer.is_cancelled
    wait.set()
    monkeypatch.setattr(forwarder, "_handle", lambda _: Handle(Answer(wait)))
    assert [part async for part in await forwarder.stream("svc--v4", "/x", b"{}", "r1")] == [(200, [])]
