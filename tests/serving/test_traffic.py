"""The middleware around an ASGI app that answers like the engine, without the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from seatrial.config.service import HttpSection, KeySection
from seatrial_serving.errors import App, HttpError, Receive, Scope, Send
from seatrial_serving.live import Live, Rules
from seatrial_serving.request import Head
from seatrial_serving.table import Table
from seatrial_serving.traffic import Traffic, UnreachableError
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
    """Keeps what a recorder is given."""

    def __init__(self) -> None:
        self.open: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []

    def opened(self, row: dict[str, Any]) -> None:
        self.open.append(row)

    def exposed(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    async def outcomes(self, rows: list[dict[str, Any]]) -> None:
        self.kept += rows


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
    engine: App = echo, *, ready: dict[str, str | None] | None = None, **rules: Any
) -> tuple[Any, Shelf, Live]:
    shelf = Shelf()
    limits = {"model_tokens": 512, "max_in_flight": 4, **rules}
    table = Table.from_json("svc", "r1", TRAFFIC)
    live = Live(table, Rules.of(HTTP, **limits), ready or {"6": None, "7": None})
    return Traffic(engine, live, shelf, nowhere), shelf, live  # type: ignore[arg-type]


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


async def test_a_request_is_rewritten_and_its_answer_labelled() -> None:
    app, shelf, _ = service()
    answer = await ask(app, user="u1")
    seen = answer.json()
    version = answer.headers["x-seatrial-version"]
    assert seen["model"] == f"svc@{version}"
    assert seen["body"]["max_tokens"] == 32
    assert seen["headers"]["x-request-id"] == answer.headers["x-seatrial-request-id"]
    assert "authorization" not in seen["headers"], "the key stays in front of the engine"
    assert answer.headers["x-seatrial-trial"] == "svc-3"
    (row,) = shelf.rows
    assert row["arm"] == answer.headers["x-seatrial-arm"]
    assert (row["unit"], row["sticky"], row["status"], row["error"]) == ("u1", True, 200, None)
    assert row["completion_tokens"] == 5
    assert 0 < row["ttft_s"] <= row["latency_s"]


async def test_a_repeated_request_id_of_a_client_loses_no_exposure_and_chooses_no_arm() -> None:
    app, shelf, _ = service()
    async with client(app) as http:
        for _ in range(40):
            answer = await http.post(
                "/v1/chat/completions",
                json={"model": "svc", "messages": MESSAGES},
                headers={"X-Request-Id": "order-17"},
            )
            assert answer.json()["headers"]["x-request-id"] == answer.headers["x-seatrial-request-id"]
    assert len({row["request_id"] for row in shelf.rows}) == 40
    assert {row["unit"] for row in shelf.rows} == {row["request_id"] for row in shelf.rows}
    assert {row["arm"] for row in shelf.rows} == {"champion", "challenger"}


async def test_pinned_requests_are_not_exposures() -> None:
    app, shelf, _ = service()
    answer = await ask(app, model="svc@7")
    assert answer.headers["x-seatrial-version"] == "7"
    assert "x-seatrial-arm" not in answer.headers
    assert shelf.rows == []


async def test_only_the_allowlist_answers() -> None:
    app, _, _ = service()
    async with client(app) as http:
        for method, path in [
            ("GET", "/metrics"),
            ("GET", "/docs"),
            ("GET", "/openapi.json"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/v1/embeddings"),
            ("POST", "/tokenize"),
            ("GET", "/v1/chat/completions"),
            ("POST", "/v1/chat/completions/"),
            ("POST", "//v1/chat/completions"),
            ("OPTIONS", "/v1/models"),
            ("DELETE", "/v1/models"),
            ("GET", "/"),
        ]:
            answer = await http.request(method, path)
            assert answer.status_code == 404, (method, path)
            assert error_of(answer)["code"] == "unknown_route"


async def test_every_route_but_health_needs_a_key() -> None:
    async def healthy(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app, _, _ = service(healthy)
    for key in (None, "sk-wrong"):
        async with client(app, key) as http:
            for method, path in (
                ("GET", "/v1/models"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/v1/completions"),
                ("POST", "/v1/outcomes"),
                ("GET", "/metrics"),
            ):
                answer = await http.request(method, path)
                assert answer.status_code == 401
                assert error_of(answer)["type"] == "authentication_error"
            assert (await http.get("/health")).status_code == 200


async def test_bodies_are_limited_before_they_are_read_whole() -> None:
    app, _, _ = service()

    async def parts() -> Any:
        for _ in range(10):
            yield b"x" * 1000

    async with client(app) as http:
        for content in (b"x" * 2049, parts()):
            answer = await http.post("/v1/completions", content=content)
            assert answer.status_code == 413
            assert error_of(answer)["param"] == "body"
        for content in (b"", b"[]", b"{", b"\xff", b'"text"', b"[" * 2000):
            answer = await http.post("/v1/completions", content=content)
            assert answer.status_code == 400
            assert error_of(answer)["code"] == "invalid_json"


async def test_too_many_at_once_are_told_to_come_back() -> None:
    gate = asyncio.Event()
    app, _, _ = service(streaming(b"data: a\n\n", after=gate.wait))
    waiting = [asyncio.create_task(ask(app)) for _ in range(4)]
    await asyncio.sleep(0.05)
    refused = await ask(app)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    gate.set()
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


async def test_requests_that_are_still_being_read_hold_a_place_and_only_for_a_while() -> None:
    app, shelf, live = service(max_in_flight=2)

    async def trickle() -> Any:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async with client(app) as http:
        reading = [asyncio.create_task(http.post("/v1/completions", content=trickle())) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert (await ask(app)).status_code == 429
        late = await asyncio.gather(*reading)
    assert {(answer.status_code, error_of(answer)["code"]) for answer in late} == {(408, "timeout")}
    assert live.admitted == 0
    assert (await ask(app)).status_code == 200
    assert shelf.rows[0]["status"] == 200


async def test_what_is_nested_too_deeply_is_refused_in_shape() -> None:
    app, shelf, _ = service()
    async with client(app) as http:
        for levels in (100, 400, 900):
            deep = b'{"model":"svc","messages":[{}],"stop":' + b"[" * levels + b"]" * levels + b"}"
            for path in ("/v1/chat/completions", "/v1/outcomes"):
                answer = await http.post(path, content=deep)
                assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")
    assert shelf.rows == []


async def test_a_fault_of_our_own_is_answered_in_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    app, _, live = service()
    monkeypatch.setattr(type(live.table), "route", lambda *_: 1 / 0)
    answer = await ask(app)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "service_failed")
    assert answer.headers["x-seatrial-request-id"]
    assert live.admitted == 0


async def test_a_stream_is_passed_on_and_its_first_token_noted_when_it_leaves() -> None:
    usage = b'data: {"usage":{"completion_tokens":3}}\n\n'
    app, shelf, live = service(streaming(b"data: a\n\n", usage, b"data: [DONE]\n\n"))
    answer = await ask(app, stream=True)
    assert answer.content == b"data: a\n\n" + usage + b"data: [DONE]\n\n"
    assert answer.headers["x-seatrial-version"] in ("6", "7")
    assert len(shelf.open) == len(shelf.rows) == 1
    assert shelf.rows[0]["completion_tokens"] == 3
    assert live.in_flight.total() == 0


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
        for _ in range(5):
            await asyncio.sleep(0.2)  # of the 0.5 s that are allowed between pieces
            await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    app, shelf, _ = service(slow)
    answer = await ask(app, stream=True)
    assert answer.content.count(b"data: a") == 5
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

    async def ask(self, app: Any) -> None:
        body = json.dumps({"model": "svc", "messages": MESSAGES, "stream": True, "user": "u"}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            return await asyncio.Event().wait()

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await asyncio.wait_for(app(scope, receive, self), 10)


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
        raise RuntimeError("a\0b")

    app, shelf, _ = service(broken)
    await ask(app)
    assert shelf.rows[0]["error"] == "RuntimeError: ab"


async def test_an_error_in_the_middle_of_a_stream_is_a_failure() -> None:
    app, shelf, _ = service(streaming(b"data: a\n\n", b'data: {"error": {"message": "boom"}}\n\n'))
    await ask(app, stream=True)
    assert shelf.rows[0]["status"] == 500
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


async def test_a_version_that_cannot_be_reached_is_answered_by_the_champion_within_a_trial() -> None:
    app, shelf, live = service(ready={"6": None, "7": "svc--v7"})
    answers = [await ask(app, user=f"u{i}") for i in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-seatrial-version"] for answer in answers} == {"6"}
    lost = [row for row in shelf.rows if row["arm"] == "challenger"]
    assert lost
    assert all(row["fallback"] and row["assigned_version"] == "7" for row in lost)
    pinned = await ask(app, model="svc@7")
    assert (pinned.status_code, error_of(pinned)["code"]) == (503, "version_unavailable")
    assert live.in_flight.total() == 0


async def test_models_lists_what_can_be_asked_for() -> None:
    app, _, _ = service()
    async with client(app) as http:
        cards = (await http.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["svc", "svc@champion", "svc@challenger", "svc@6", "svc@7"]


async def test_outcomes_are_taken_one_by_one() -> None:
    app, shelf, _ = service()
    async with client(app) as http:
        one = await http.post(
            "/v1/outcomes", json={"request_id": "chatcmpl-r1", "metric": "resolved", "value": True}
        )
        assert one.json() == {"accepted": 1, "rejected": []}
        many = [
            {"request_id": "r2", "metric": "thumbs", "value": 0.5, "id": "mine"},
            {"request_id": "r3", "metric": "Thumbs!", "value": 1},
            {"request_id": "r3", "metric": "thumbs", "value": "high"},
            {"request_id": "r3", "metric": "thumbs", "value": 1, "extra": 1},
            {"metric": "thumbs", "value": 1},
            {"request_id": "a\0b", "metric": "thumbs", "value": 1},
            {"request_id": "chatcmpl-", "metric": "thumbs", "value": 1},
            {"request_id": "r3", "metric": "thumbs", "value": 1e200},
        ]
        mixed = (await http.post("/v1/outcomes", json={"outcomes": many})).json()
        assert mixed["accepted"] == 1
        assert [item["index"] for item in mixed["rejected"]] == list(range(1, 8))
        for wrong in ({}, {"outcomes": []}, {"outcomes": "all"}, {"outcomes": [many[0]] * 1001}):
            answer = await http.post("/v1/outcomes", content=json.dumps(wrong))
            assert answer.status_code in (400, 413)
    assert [row["request_id"] for row in shelf.kept] == ["r1", "r2"]
    assert shelf.kept[0]["value"] == 1.0


async def test_errors_carry_the_request_id() -> None:
    app, _, _ = service()
    answer = await ask(app, n=99)
    assert error_of(answer)["param"] == "n"
    assert answer.headers["x-seatrial-request-id"]


def test_an_http_error_is_openais_shape() -> None:
    assert json.loads(HttpError(503, "m", code="c").body()) == {
        "error": {"message": "m", "type": "server_error", "param": None, "code": "c"}
    }
