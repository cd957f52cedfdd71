"""The middleware around an ASGI app that answers like the engine, without the engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from seatrial_serving.errors import HttpError, Receive, Scope, Send
from tests.serving.front import MESSAGES, ask, client, error_of, service, streaming


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
        assert mixed["rejected"][0] == {
            "index": 1,
            "request_id": "r3",
            "reason": "metric: 'Thumbs!': give a name such as resolved",
        }
        assert "request_id" not in mixed["rejected"][3], "it gave none"
        for wrong in ({}, {"outcomes": []}, {"outcomes": "all"}, {"outcomes": [many[0]] * 1001}):
            answer = await http.post("/v1/outcomes", content=json.dumps(wrong))
            assert answer.status_code in (400, 413)
    assert [row["request_id"] for row in shelf.kept] == ["r1", "r2"]
    assert shelf.kept[0]["value"] == 1.0


async def test_an_outcome_speaks_of_a_request_or_of_a_unit() -> None:
    app, shelf, _ = service()
    async with client(app) as http:
        said = {"metric": "resolved", "value": 1}
        one = await http.post("/v1/outcomes", json={"unit": "ann", **said})
        assert one.json() == {"accepted": 1, "rejected": []}
        both = {"unit": "ann", "request_id": "r1", **said}
        many = [both, {"unit": "", **said}, {"unit": "a\nb", **said}, {"unit": 7, **said}]
        refused = await http.post("/v1/outcomes", json={"outcomes": many})
        assert refused.status_code == 400
        for index, reason in enumerate(["give one of the two", "unit: ''", "unit: 'a", "unit: '7'"]):
            assert f"outcomes[{index}]: " in error_of(refused)["message"]
            assert reason in error_of(refused)["message"]
            assert reason in refused.json()["rejected"][index]["reason"]
        found = refused.json()
        assert found["accepted"] == 0
        assert [{**each, "reason": ""} for each in found["rejected"]] == [
            {"index": 0, "request_id": "r1", "unit": "ann", "reason": ""},
            {"index": 1, "unit": "", "reason": ""},
            {"index": 2, "unit": "a\nb", "reason": ""},
            {"index": 3, "reason": ""},
        ]
    assert [(row["request_id"], row["unit"]) for row in shelf.kept] == [("", "ann")]


async def test_errors_carry_the_request_id() -> None:
    app, _, _ = service()
    answer = await ask(app, n=99)
    assert error_of(answer)["param"] == "n"
    assert answer.headers["x-seatrial-request-id"]


def test_an_http_error_is_openais_shape() -> None:
    assert json.loads(HttpError(503, "m", code="c").body()) == {
        "error": {"message": "m", "type": "server_error", "param": None, "code": "c"}
    }
