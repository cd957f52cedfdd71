"""A challenger in an application of its own takes requests and hangs: no client of the champion sees it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx

from seatrial_serving.errors import Receive, Scope, Send
from seatrial_serving.live import Live, Rules
from seatrial_serving.request import Head
from seatrial_serving.traffic import UnreachableError
from tests.serving.front import HTTP, ask, echo, error_of, service
from tests.serving.test_table import TRAFFIC

MOST = 8
PATIENT = HTTP.model_copy(update={"request_timeout_s": 60.0})
APPS: dict[str, str | None] = {"6": None, "7": "svc--v7"}


class Deadlock:
    """Applications that hold what they are sent until ``gate`` opens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked: Counter[str] = Counter()

    async def __call__(
        self, app: str, path: str, body: bytes, head: Head, receive: Receive, send: Send
    ) -> None:
        self.asked[app] += 1
        await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def patient(live: Live) -> None:
    live.rules = Rules.of(PATIENT, model_tokens=512, max_in_flight=MOST)


async def sent(app: Any, count: int, **fields: Any) -> tuple[list[httpx.Response], list[asyncio.Task[Any]]]:
    """Requests of ``count`` users one after the other: the answers, and those that still wait for theirs."""
    tasks = []
    for number in range(count):
        task = asyncio.create_task(ask(app, user=f"u{number}", **fields))
        tasks.append(task)
        await asyncio.wait([task], timeout=0.05)
    return [task.result() for task in tasks if task.done()], [task for task in tasks if not task.done()]


async def test_it_holds_its_part_of_the_limit_and_the_champion_answers_everybody_else() -> None:
    hung = Deadlock()
    app, shelf, live = service(ready=APPS, forward=hung, max_in_flight=MOST)
    patient(live)
    answers, waiting = await sent(app, 60)
    assert len(waiting) == live.in_flight["7"] == hung.asked["svc--v7"] == MOST * 7 // 8
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-seatrial-version"] for answer in answers} == {"6"}
    arms = Counter(row["arm"] for row in shelf.rows)
    assert arms["challenger"] > MOST
    for row in shelf.rows:
        is_challengers = row["arm"] == "challenger"
        assert (row["assigned_version"], row["served_version"]) == ("7" if is_challengers else "6", "6")
        assert row["fallback"] == is_challengers
    hung.gate.set()
    late = await asyncio.gather(*waiting)
    assert {(answer.status_code, answer.headers["x-seatrial-version"]) for answer in late} == {(200, "7")}
    answers, waiting = await sent(app, 20)
    assert not waiting
    assert {answer.headers["x-seatrial-version"] for answer in answers} == {"6", "7"}, "it is asked again"
    assert live.in_flight.total() == live.admitted == 0


async def test_several_share_one_part() -> None:
    hung = Deadlock()
    arms = [
        {"name": n, "version": v, "weight": 1 / 3} for n, v in (("champion", "6"), ("b", "7"), ("c", "8"))
    ]
    traffic = {**TRAFFIC, "trial": {**TRAFFIC["trial"], "arms": arms}}  # type: ignore[dict-item]
    app, _, live = service(ready={**APPS, "8": "svc--v8"}, traffic=traffic, forward=hung, max_in_flight=MOST)
    patient(live)
    answers, waiting = await sent(app, 40)
    assert {answer.status_code for answer in answers} == {200}
    assert live.in_flight["7"] + live.in_flight["8"] == MOST * 7 // 8
    hung.gate.set()
    await asyncio.gather(*waiting)


async def test_what_nobody_can_stand_in_for_has_the_whole_limit() -> None:
    for ready, fields in ((APPS, {"model": "svc@7"}), ({"6": "svc--v6"}, {})):
        hung = Deadlock()
        app, shelf, live = service(ready=ready, forward=hung, max_in_flight=MOST)  # type: ignore[arg-type]
        patient(live)
        answers, waiting = await sent(app, MOST + 1, **fields)
        assert len(waiting) == MOST
        (refused,) = answers
        assert (refused.status_code, error_of(refused)["code"]) == (429, "overloaded")
        assert shelf.rejections == ["overloaded"]
        hung.gate.set()
        await asyncio.gather(*waiting)


async def test_a_request_is_not_under_way_to_the_version_that_another_stands_in_for() -> None:
    seen: list[dict[str, int]] = []

    async def looks(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(+live.in_flight))
        await echo(scope, receive, send)

    async def down(app: str, *_: Any) -> None:
        raise UnreachableError(f"{app} is down")

    app, _, live = service(looks, ready=APPS, forward=down)
    await sent(app, 20)
    assert seen == [{"6": 1}] * 20
