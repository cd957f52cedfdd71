"""What is said of an MLflow server that is there and does not do its work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from seatrial.errors import RetryableError
from seatrial.registry import aliases
from seatrial.registry.client import asking, connect


class Hanging(BaseHTTPRequestHandler):
    """Well by its health page; anything else ends without an answer."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def half_dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address with a name and a password in it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://joe:hunter2@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_answers_its_health_alone_is_said_without_its_password(half_dead: str):
    """The line stands in logs, in `/healthz` and on pages."""
    connect(half_dead)
    with pytest.raises(RetryableError, match="MLflow: ") as caught:
        aliases.read("chat", uri=half_dead)
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(RetryableError) as caught, asking():
        raise requests.HTTPError(
            f"507 Server Error: Insufficient Storage for url: {half_dead}/artifacts/p%40q"
        )
    assert str(caught.value).endswith(f"for url: {half_dead.replace('joe:hunter2@', '')}/artifacts/p%40q")
