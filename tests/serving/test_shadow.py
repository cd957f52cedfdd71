"""Copies for the shadow: never waited for, never seen, never evidence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from seatrial_serving.errors import Receive, Scope, Send
from seatrial_serving.metrics import SHADOW
from seatrial_serving.shadow import MOST_RUNNING, MOST_WAITING, MOST_WAITING_BYTES, Copy, Shadows
from seatrial_serving.table import Table
from tests.serving.front import HTTP, ask, service
from tests.serving.test_table import TRAFFIC

SHADOWED = {"aliases": {"champion": "6", "shadow": "8"}, "shadow": {"version": "8", "share": 1.0}}
READY: dict[str, str | None] = {"6": None, "7": None, "8": None}


class Model:
    """Answers with a text of each version; the shadow may fail, or wait for ``gate``."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.seen: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        self.seen.append(body)
        version = body["model"].removeprefix("svc@")
        if version == "8":
            await self.gate.wait()
        if version not in self.texts:
            raise RuntimeError("no such text")
        choice = {"index": 0, "message": {"content": self.texts[version]}}
        answer = {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def settled(shelf: Any, count: int) -> None:
    async with asyncio.timeout(10):
        while len(shelf.shadows) < count:
            await asyncio.sleep(0.01)


async def test_a_copy_follows_the_answer_and_only_the_metrics_know() -> None:
    for text, result in (("yes", "same"), ("no", "different")):
        model = Model({"6": "yes", "8": text})
        app, shelf, live = service(model, ready=READY, traffic=SHADOWED, max_in_flight=64)
        answer = await ask(app, user="u1", max_tokens=5, temperature=0)
        assert answer.headers["x-seatrial-version"] == "6"
        await settled(shelf, 1)
        assert shelf.shadows == [("8", result)]
        real, copy = model.seen
        assert copy == {**real, "model": "svc@8", "priority": 1}
        samples = {sample.arm: sample for sample in shelf.samples}
        assert samples["none"].version == "6"
        assert (samples[SHADOW].version, samples[SHADOW].status) == ("8", 200)
        assert (samples[SHADOW].prompt_tokens, samples[SHADOW].completion_tokens) == (2, 3)
        assert 0 < (samples[SHADOW].ttft_s or 0) <= samples[SHADOW].latency_s
        assert shelf.rows == shelf.open == []
        assert live.in_flight.total() == 0


async def test_the_shadows_failures_are_counted_and_seen_by_nobody() -> None:
    app, shelf, live = service(Model({"6": "yes"}), ready=READY, traffic=SHADOWED, max_in_flight=64)
    assert (await ask(app)).status_code == 200
    await settled(shelf, 1)
    assert shelf.shadows == [("8", "failed")]
    assert [sample.status for sample in shelf.samples if sample.arm == SHADOW] == [500]
    assert live.in_flight.total() == 0
    app, shelf, _ = service(
        Model({"6": "yes"}), ready={**READY, "8": "svc--v8"}, traffic=SHADOWED, max_in_flight=64
    )
    assert (await ask(app)).status_code == 200
    await settled(shelf, 1)
    assert shelf.shadows == [("8", "failed")]


async def test_a_shadow_that_hangs_holds_nothing_up_and_copies_are_dropped() -> None:
    model = Model({"6": "yes", "8": "yes"})
    model.gate.clear()
    app, shelf, live = service(model, ready=READY, traffic=SHADOWED, max_in_flight=640)
    # Longer than the loop takes: a running copy that is given up makes room in the line.
    live.rules = replace(live.rules, http=HTTP.model_copy(update={"request_timeout_s": 60.0}))
    asked = MOST_RUNNING + MOST_WAITING + 5
    for _ in range(asked):
        assert (await ask(app)).status_code == 200
        await asyncio.sleep(0)
    assert shelf.shadows == [("8", "dropped")] * 5
    assert live.in_flight["8"] <= MOST_RUNNING
    model.gate.set()
    await settled(shelf, asked)
    assert shelf.shadows[5:] == [("8", "same")] * (asked - 5)
    assert live.in_flight.total() == 0


async def test_copies_that_hang_are_given_up_and_others_take_their_place() -> None:
    model = Model({"6": "yes", "8": "yes"})
    model.gate.clear()
    app, shelf, live = service(model, ready=READY, traffic=SHADOWED, max_in_flight=640)
    for _ in range(MOST_RUNNING + 2):
        assert (await ask(app)).status_code == 200
    await settled(shelf, MOST_RUNNING)  # after http.request_timeout_s
    assert set(shelf.shadows) == {("8", "failed")}
    model.gate.set()
    await settled(shelf, MOST_RUNNING + 2)
    assert live.in_flight.total() == 0


async def test_copies_wait_while_real_requests_want_the_engine() -> None:
    # An engine that computes two requests at once, and does.
    app, shelf, live = service(
        Model({"6": "yes", "8": "yes"}), ready=READY, traffic=SHADOWED, max_in_flight=32
    )
    live.admitted += 2
    assert (await ask(app)).status_code == 200
    await asyncio.sleep(0.2)
    assert shelf.shadows == []
    live.admitted -= 2
    await settled(shelf, 1)
    assert shelf.shadows == [("8", "same")]


async def test_what_is_not_the_champions_is_not_copied() -> None:
    traffic = {**TRAFFIC, "shadow": {"version": "8", "share": 1.0}}
    model = Model({"6": "a", "7": "b", "8": "c"})
    app, shelf, _ = service(model, ready=READY, traffic=traffic, max_in_flight=640)
    answers = [await ask(app, user=f"u{index}") for index in range(20)]
    champions = [answer for answer in answers if answer.headers["x-seatrial-arm"] == "champion"]
    assert 0 < len(champions) < 20
    await settled(shelf, len(champions))
    assert (await ask(app, model="svc@champion")).status_code == 200
    await asyncio.sleep(0.1)
    assert len(shelf.shadows) == len(champions)
    assert {row["arm"] for row in shelf.rows} == {"champion", "challenger"}, "no evidence of the shadow"


async def test_an_arm_answers_though_nobody_is_champion() -> None:
    arms = [{"name": "challenger", "version": "7", "weight": 1.0}]
    trial = {**TRAFFIC["trial"], "arms": arms}
    traffic = {"aliases": {"shadow": "8"}, "trial": trial, "shadow": SHADOWED["shadow"]}
    app, shelf, _ = service(Model({"7": "b"}), ready=READY, traffic=traffic, max_in_flight=64)
    assert (await ask(app)).headers["x-seatrial-version"] == "7"
    assert shelf.shadows == []


async def test_a_share_of_the_requests_is_copied() -> None:
    traffic = {**SHADOWED, "shadow": {"version": "8", "share": 0.5}}
    app, shelf, _ = service(Model({"6": "a", "8": "a"}), ready=READY, traffic=traffic, max_in_flight=6400)
    ids = [(await ask(app)).headers["x-seatrial-request-id"] for _ in range(100)]
    drawn = sum(int(each[:8], 16) < 2**31 for each in ids)
    assert 25 < drawn < 75
    await settled(shelf, drawn)
    await asyncio.sleep(0.1)
    assert len(shelf.shadows) == drawn


def test_a_shadow_that_is_not_ready_delays_no_table() -> None:
    table = Table.from_json("svc", "r", SHADOWED)
    assert table.needed == {"6"}


async def test_the_line_is_bounded_in_bytes_and_takes_nothing_once_closed() -> None:
    _, shelf, live = service(Model({}), ready=READY, traffic=SHADOWED, max_in_flight=64)
    shadows = Shadows(live, no_stream, shelf)
    large = Copy("8", "/v1/completions", b"x" * (MOST_WAITING_BYTES // 2 + 1), "00", None)
    shadows.offer(large)
    shadows.offer(large)
    assert shelf.shadows == [("8", "dropped")]
    shadows.close()
    await asyncio.sleep(0)
    shadows.offer(replace(large, body=b"{}"))
    assert shelf.shadows == [("8", "dropped")] * 2


async def no_stream(*_: Any) -> AsyncGenerator[Any, None]:
    raise AssertionError("nothing may start")
    yield
