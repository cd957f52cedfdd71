"""What a pass reads of the registry when its server does not answer as it should."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from seatrial.errors import RetryableError
from seatrial.reconcile.desired import Registry

ROW: dict[str, Any] = {"deleted_at": None, "state": {}, "config": {}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server that is healthy and answers nothing else, and what it was asked for."""
    paths: list[str] = []
    over = threading.Event()

    class Hung(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                paths.append(self.path)
                over.wait(30)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hung)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_hangs_is_waited_for_once_in_a_pass(asked: tuple[str, list[str]]) -> None:
    uri, paths = asked
    registry = Registry(uri, silent_s=0.5)
    with pytest.raises(RetryableError):
        registry.service("one", ROW, ())
    assert len(paths) == 1
    for name in ("two", "three"):
        with pytest.raises(RetryableError):
            registry.service(name, ROW, ())
    assert len(paths) == 1
