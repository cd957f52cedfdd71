"""A version that is a full model answers in a Serve application of its own, reached through a handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from seatrial_serving.errors import App, Message, Receive, Send
from seatrial_serving.request import Head
from seatrial_serving.traffic import UnreachableError

DEPLOYMENT = "Engine"
PASSED_HEADERS = frozenset({b"content-type", b"content-length"})
Part = tuple[int, list[tuple[bytes, bytes]]] | bytes
"""First the status and headers, then pieces of the body."""
ACCEPTED = b""
"""What a replica says before anything else."""
# While an application has no replica left, a handle waits instead of failing.
ACCEPT_TIMEOUT_S = 5.0


async def drive(app: App, path: str, body: bytes, request_id: str) -> AsyncGenerator[Part, None]:
    """POST ``body`` to an ASGI app of this process and give its answer as it comes.

    Closing the iterator early cancels the request, and with it the engine's work on it.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=32)
    first: Message | None = {"type": "http.request", "body": body, "more_body": False}
    forever = asyncio.Event()

    async def receive() -> Message:
        nonlocal first
        if first is None:
            await forever.wait()
        message, first = first, None
        return message or {"type": "http.disconnect"}

    failure: list[Exception] = []

    async def run() -> None:
        try:
            await app(_scope(path, body, request_id), receive, messages.put)
        except Exception as error:
            failure.append(error)
        await messages.put(None)  # not when it was cancelled: nobody takes from the queue then

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0] in PASSED_HEADERS]
                yield message["status"], headers
            elif message.get("body"):
                yield message["body"]
        if failure:
            raise failure[0]
    finally:
        task.cancel()


def _scope(path: str, body: bytes, request_id: str) -> dict[str, Any]:
    headers = [
        (b"host", b"seatrial"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }


class Forwarder:
    """Sends requests to other applications of this Serve instance."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    async def stream(self, app: str, path: str, body: bytes, request_id: str) -> Any:
        """Hand the request to a replica of ``app``; an asynchronous iterator of :data:`Part`.

        Raises:
            UnreachableError: no replica took it.
        """
        parts = self._handle(app).remote(path, body, request_id)
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                await anext(parts)
        except BaseException as error:
            parts.cancel()
            if not isinstance(error, Exception):
                raise
            raise UnreachableError(f"{app}: {type(error).__name__}: {str(error)[:200]}") from error
        return parts

    def _handle(self, app: str) -> Any:
        if app not in self._handles:
            from ray import serve

            handle = serve.get_deployment_handle(DEPLOYMENT, app, _check_exists=False)
            self._handles[app] = handle.options(stream=True, method_name="forward")
        return self._handles[app]

    async def __call__(
        self, app: str, path: str, body: bytes, head: Head, receive: Receive, send: Send
    ) -> None:
        """Pass a request on and its answer back.

        Raises:
            UnreachableError: the application failed before it had said anything.
        """
        parts = await self.stream(app, path, body, head.request_id)
        try:
            try:
                status, headers = await anext(parts)
            except Exception as error:
                raise UnreachableError(f"{app}: {type(error).__name__}: {str(error)[:200]}") from error
            if status >= 500:
                raise UnreachableError(f"{app}: answers {status}")
            await send({"type": "http.response.start", "status": status, "headers": headers})
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            parts.cancel()
