"""The middleware around an ASGI app that stands for the engine, and a client of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import httpx

from seatrial.config.service import HttpSection, KeySection
from seatrial_serving.errors import App, Receive, Scope, Send
from seatrial_serving.forward import drive
from seatrial_serving.live import Live, Rules
from seatrial_serving.metrics import Sample
from seatrial_serving.request import Head
from seatrial_serving.shadow import Shadows
from seatrial_serving.table import Table
from seatrial_serving.traffic import Forward, Traffic, UnreachableError
from tests.serving.stage import KEY, KEY_SHA256
from tests.serving.test_table import TRAFFIC

HTTP = HttpSection(
    keys=(KeySection(name="test", sha256=KEY_SHA256),),
    max_body_bytes=2048,
    max_tokens=32,
    request_timeout_s=0.5,
)
MESSAGES = [{"role": "user", "content": "hello"}]


class Shelf:
    """Keeps what a recorder and a meter are given."""

    def __init__(self) -> None:
        self.open: list[dict[str, Any]] = []
        self.ended_ids: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []
        self.samples: list[Sample] = []
        self.shadows: list[tuple[str, str]] = []
        self.judgements: list[tuple[str, str, int]] = []
        self.rejections: list[str] = []

    def opened(self, row: dict[str, Any]) -> None:
        self.open.append(row)

    def ended(self, request_id: str) -> None:
        self.ended_ids.append(request_id)

    def exposed(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    async def outcomes(self, rows: list[dict[str, Any]]) -> None:
        self.kept += rows

    def answered(self, sample: Sample) -> None:
        self.samples.append(sample)

    def shadowed(self, version: str, result: str) -> None:
        self.shadows.append((version, result))

    def judged(self, arm: str, version: str, count: int) -> None:
        self.judgements.append((arm, version, count))

    def rejected(self, reason: str) -> None:
        self.rejections.append(reason)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body and headers that it was given, plus a usage block."""
    body = json.loads((await receive())["body"])
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    answer = {"model": body["model"], "body": body, "headers": headers, "usage": {"completion_tokens": 5}}
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    )
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def streaming(*chunks: bytes, after: Callable[[], Any] | None = None) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if after is not None:
            await after()
        await send({"type": "http.response.body", "body": b""})

    return app


async def nowhere(app: str, path: str, body: bytes, head: Head, receive: Receive, send: Send) -> None:
    raise UnreachableError(f"{app} is down")


def service(
    engine: App = echo,
    *,
    ready: dict[str, str | None] | None = None,
    traffic: Any = None,
    forward: Forward = nowhere,
    **rules: Any,
) -> tuple[Any, Shelf, Live]:
    shelf = Shelf()
    limits = {"model_tokens": 512, "max_in_flight": 4, **rules}
    table = Table.from_json("svc", "r1", traffic or TRAFFIC)
    live = Live(table, Rules.of(HTTP, **limits), ready or {"6": None, "7": None})

    async def stream(app: str | None, path: str, body: bytes, request_id: str) -> AsyncGenerator[Any, None]:
        if app is not None:
            raise UnreachableError(f"{app} is down")
        async with aclosing(drive(engine, path, body, request_id)) as parts:
            async for part in parts:
                yield part

    shadows = Shadows(live, stream, shelf)
    traffic = Traffic(engine, live, shelf, forward, meter=shelf, shadows=shadows)  # type: ignore[arg-type]
    return traffic, shelf, live


def client(app: App, key: str | None = KEY) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://svc", headers=headers)  # type: ignore[arg-type]


async def ask(app: App, **fields: Any) -> httpx.Response:
    async with client(app) as http:
        return await http.post("/v1/chat/completions", json={"model": "svc", "messages": MESSAGES, **fields})


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return dict(error)
