"""HAProxy with Serve's configuration as our script changes it: what a client gets when replicas die."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from seatrial.stack import haproxy
from tests.serving import stage

REQUESTS = 8


@dataclass
class Front:
    """HAProxy, and the servers behind it by their ports."""

    folder: Path
    url: str
    servers: dict[int, subprocess.Popen[bytes]]

    @property
    def taken(self) -> list[int]:
        """The server of each request that was read whole."""
        file = self.folder / "taken"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    port, *ports = (stage.free_port() for _ in range(3))
    with ExitStack() as stack:

        def start(*words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "tests.stack.proxied", *words]
            log = tmp_path / f"{words[0]}{words[2]}.log"
            return stack.enter_context(stage.process(command, log, env or dict(os.environ)))

        servers = {each: start("server", str(tmp_path), str(each)) for each in ports}
        env = {**os.environ, **stage.serve_environment(tmp_path)}
        start("front", str(tmp_path), str(port), *map(str, ports), env=env)
        url = f"http://127.0.0.1:{port}"
        stage.wait_until(lambda: stage.answers(f"{url}/v1/models"), 60, "HAProxy")
        yield Front(tmp_path, url, servers)


def post(url: str, body: bytes) -> httpx.Response:
    """As OpenAI's client does it: the head, then the body, on a connection that is kept."""

    def pieces() -> Iterator[bytes]:
        for start in (0, len(body) // 2):
            time.sleep(0.02)
            yield body[start:][: len(body) // 2]

    headers = {"content-length": str(len(body))}
    with httpx.Client(timeout=30) as client:
        client.get(f"{url}/v1/models").raise_for_status()
        return client.post(f"{url}/v1/chat/completions", content=pieces(), headers=headers)


@pytest.mark.parametrize("size", [100, 256 * 1024])
def test_a_dead_replicas_requests_are_asked_of_the_other(front: Front, size: int) -> None:
    with ThreadPoolExecutor(REQUESTS) as pool:
        asked = [pool.submit(post, front.url, b"x" * size) for _ in range(REQUESTS)]
        stage.wait_until(lambda: len(front.taken) == REQUESTS, 30, "every request with a server")
        dead, other = front.servers
        lost = front.taken.count(dead)
        front.servers[dead].kill()
        (front.folder / "go").touch()
        answers = [each.result() for each in asked]
    assert lost > 0
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, str(other))] * REQUESTS


def test_what_no_replica_answers_is_told_in_json(front: Front) -> None:
    for each in front.servers.values():
        each.kill()
        each.wait()
    with httpx.Client() as client:
        answer = client.get(f"{front.url}/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
        hidden = client.get(f"{front.url}/-/routes")
        assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "unknown_route")


def test_haproxys_own_pages_are_on_loopback_alone(front: Front) -> None:
    lines = [line.split() for line in (front.folder / "haproxy.cfg").read_text().splitlines()]
    bound = [words[1] for words in lines if words[:1] == ["bind"]]
    assert len(bound) > 1
    assert all(address.startswith("127.0.0.1:") for address in bound)


def test_a_request_that_does_not_come_whole_is_told_so(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(haproxy, "REQUEST_TIMEOUT_S", 1)
    front: Front = request.getfixturevalue("front")
    port = httpx.URL(front.url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        said = b""
        while piece := connection.recv(4096):
            said += piece
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "timeout"' in body
    assert front.taken == []
