"""How answers end, and what is recorded of each ending."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from seatrial_serving.errors import App, Receive, Scope, Send
from tests.serving.front import MESSAGES, ask, echo, error_of, service, streaming
from tests.serving.stage import KEY


async def test_a_stream_that_hangs_is_ended_with_an_error_event_and_is_a_failure() -> None:
    app, shelf, _ = service(streaming(b"data: a\n\n", after=asyncio.Event().wait))
    answer = await ask(app, stream=True)
    assert b'"code":"timeout"' in answer.content
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert shelf.rows[0]["status"] == 500
    assert "timeout" in shelf.rows[0]["error"]


async def test_a_stream_that_keeps_coming_may_take_longer_than_the_limit() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(15):
            await asyncio.sleep(0.05)  # of the 0.5 s that are allowed between pieces
            await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    app, shelf, _ = service(slow)
    answer = await ask(app, stream=True)
    assert answer.content.count(b"data: a") == 15
    assert (shelf.rows[0]["status"], shelf.rows[0]["error"]) == (200, None)


class Reader:
    """A client that goes wrong in its own way when the body's ``piece`` (0 is the head) is sent to it."""

    def __init__(self, piece: int, *, stalls: bool) -> None:
        self.piece = piece
        self.stalls = stalls
        self.sent: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.sent.append(message)
        if len(self.sent) > self.piece:
            if self.stalls:
                await asyncio.Event().wait()
            raise BrokenPipeError("gone")

    async def ask(self, app: Any, send: Send | None = None) -> None:
        body = json.dumps({"model": "svc", "messages": MESSAGES, "stream": True, "user": "u"}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            return await asyncio.Event().wait()

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await asyncio.wait_for(app(scope, receive, send or self), 10)


@pytest.mark.parametrize("engine", [echo, streaming(b"data: a\n\n", b"data: b\n\n")])
async def test_an_answer_is_on_record_before_anything_of_it_is_sent(engine: App) -> None:
    """A process killed after its client has read loses no exposure."""
    app, shelf, _ = service(engine)
    reader = Reader(100, stalls=False)
    on_record: list[int] = []

    async def send(message: Any) -> None:
        await reader(message)
        if message["type"] == "http.response.body" and message["body"]:
            on_record.append(len(shelf.open))

    await reader.ask(app, send)
    assert on_record
    assert set(on_record) == {1}
    assert (shelf.open[0]["status"], shelf.open[0]["error"]) == (200, None)
    assert shelf.open[0]["ttft_s"] > 0
    assert [row["request_id"] for row in shelf.rows] == [shelf.open[0]["request_id"]]


@pytest.mark.parametrize("stalls", [True, False])
@pytest.mark.parametrize("piece", [0, 1, 2])
async def test_a_client_that_stops_reading_is_not_the_arms_failure(piece: int, stalls: bool) -> None:
    app, shelf, live = service(streaming(b"data: a\n\n", b"data: b\n\n"))
    await Reader(piece, stalls=stalls).ask(app)
    (row,) = shelf.rows
    if piece < 2:
        fault = "client stopped reading" if stalls else "client disconnected"
        assert (row["status"], row["error"], row["ttft_s"]) == (499, fault, None)
    else:
        assert (row["status"], row["error"]) == (200, None), "the first token was read: an exposure"
        assert row["ttft_s"] > 0
    assert live.in_flight.total() == live.admitted == 0


@pytest.mark.parametrize("ending", ["returns", "is cancelled"])
async def test_a_reader_who_leaves_before_the_first_token_is_neither_exposure_nor_failure(
    ending: str,
) -> None:
    began = asyncio.Event()

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        began.set()
        if ending == "is cancelled":
            await asyncio.Event().wait()

    app, shelf, _ = service(engine)
    asking = asyncio.create_task(ask(app, stream=True))
    await began.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    (row,) = shelf.rows
    assert (row["status"], row["error"], row["ttft_s"]) == (499, "client disconnected", None)
    assert shelf.open == []


async def test_an_answer_that_dies_after_its_head_is_left_incomplete_and_a_failure() -> None:
    async def dies(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id": ', "more_body": True})
        raise RuntimeError("the process died")

    app, shelf, _ = service(dies)
    reader = Reader(9, stalls=False)
    await reader.ask(app)
    assert [message.get("more_body") for message in reader.sent] == [None, True], "no event inside of JSON"
    assert shelf.rows[0]["status"] == 500
    assert "the process died" in shelf.rows[0]["error"]


async def test_an_answer_that_never_begins_times_out_and_is_a_failure() -> None:
    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    app, shelf, live = service(hang)
    answer = await ask(app)
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "timeout"
    assert (shelf.rows[0]["status"], shelf.rows[0]["ttft_s"]) == (504, None)
    assert live.in_flight.total() == 0


async def test_an_engine_that_breaks_is_a_failure_without_its_details() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret path /root/x")

    app, shelf, _ = service(broken)
    answer = await ask(app)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in shelf.rows[0]["error"]


async def test_an_answer_with_an_error_status_is_never_an_exposure() -> None:
    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 422, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app, shelf, _ = service(refuses)
    await ask(app)
    assert (shelf.rows[0]["status"], shelf.rows[0]["error"]) == (422, "")


async def test_what_a_database_cannot_keep_is_taken_out_of_an_error() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a\0b\udc80")

    app, shelf, _ = service(broken)
    assert (await ask(app)).status_code == 500
    assert shelf.rows[0]["error"] == "RuntimeError: ab?"


async def test_an_error_in_the_middle_of_a_stream_is_a_failure() -> None:
    app, shelf, _ = service(streaming(b"data: a\n\n", b'data: {"error": {"message": "boom"}}\n\n'))
    await ask(app, stream=True)
    assert shelf.rows[0]["status"] == 500
    assert "boom" in shelf.rows[0]["error"]


async def test_a_stream_that_begins_with_an_error_has_no_first_token() -> None:
    app, shelf, _ = service(streaming(b'data: {"error": {"message": "boom"}}\n\n'))
    await ask(app, stream=True)
    assert shelf.open == [], "were the process killed now, it would be taken for an exposure"
    assert (shelf.rows[0]["status"], shelf.rows[0]["ttft_s"]) == (500, None)
    assert "boom" in shelf.rows[0]["error"]


async def test_a_client_that_goes_away_cancels_the_engines_work() -> None:
    cancelled = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    app, shelf, live = service(slow)
    task = asyncio.create_task(ask(app))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()
    assert live.in_flight.total() == 0
    assert shelf.rows[0]["error"] == "client disconnected"
    assert (shelf.rows[0]["status"], shelf.rows[0]["ttft_s"]) == (499, None)
