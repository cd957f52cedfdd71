"""Following a job through Ray's own client while its dashboard comes and goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
from aiohttp import web

from seatrial.errors import RetryableError
from seatrial.submission import follow as following
from seatrial.submission.events import Event

Tail = Callable[[web.Request], Awaitable[web.StreamResponse]]
INFO = {"type": "SUBMISSION", "entrypoint": "x", "status": "SUCCEEDED", "driver_exit_code": 0}


async def aborts(request: web.Request) -> web.StreamResponse:
    """The dashboard dies: the client sees `ServerDisconnectedError`."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def is_not_ready(_request: web.Request) -> web.StreamResponse:
    """It starts again: the client sees `WSServerHandshakeError`."""
    return web.Response(status=503)


def says(*lines: str) -> Tail:
    async def tail(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for line in lines:
            await socket.send_str(f"{line}\n")
        await socket.close()
        return socket

    return tail


@pytest.fixture
def tails() -> list[Tail]:
    return []


@pytest.fixture
def dashboard(tails: list[Tail]) -> Iterator[str]:
    """Each request for the log is answered by the next of ``tails``, the last one again and again."""

    async def tail(request: web.Request) -> web.StreamResponse:
        return await (tails.pop(0) if len(tails) > 1 else tails[0])(request)

    async def info(_request: web.Request) -> web.Response:
        return web.json_response({**INFO, "submission_id": "job"})

    async def version(_request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    loop, started, ports = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/api/jobs/job/logs/tail", tail)
        app.router.add_get("/api/jobs/job", info)
        app.router.add_get("/api/version", version)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(runner.addresses[0][1])
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(10)
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def follow(url: str) -> tuple[following.Ending, list[Event | str]]:
    from ray.job_submission import JobSubmissionClient

    said: list[Event | str] = []
    return following.follow(JobSubmissionClient(url), "job", said.append), said


def test_a_dashboard_that_restarts_is_followed_on_without_a_line_twice(
    dashboard: str, tails: list[Tail], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECONNECT_S", 0.02)
    tails += [aborts, is_not_ready, aborts, says("one", "two")]
    ending, said = follow(dashboard)
    assert ending.status == "SUCCEEDED"
    assert said == ["one", "two"]


def test_a_silent_job_whose_stream_is_cut_off_again_and_again_is_followed_to_its_end(
    dashboard: str, tails: list[Tail], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECONNECT_S", 0.01)
    monkeypatch.setattr(following, "RECONNECTS", 3)
    monkeypatch.setitem(INFO, "status", "RUNNING")

    async def ends(request: web.Request) -> web.StreamResponse:
        monkeypatch.setitem(INFO, "status", "SUCCEEDED")
        return await says("the only line")(request)

    tails += [says()] * 6 + [ends]
    ending, said = follow(dashboard)
    assert (ending.status, said) == ("SUCCEEDED", ["the only line"])


def test_a_dashboard_that_stays_away_is_one_line_to_try_again(
    dashboard: str, tails: list[Tail], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECONNECT_S", 0.01)
    monkeypatch.setattr(following, "RECONNECTS", 3)
    tails += [is_not_ready]
    with pytest.raises(RetryableError, match="job: Ray does not answer; the job may go on") as caught:
        follow(dashboard)
    assert "\n" not in str(caught.value)
