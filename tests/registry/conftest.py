"""A server in front of the real MLflow that can be told to answer badly."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest


class Doorway:
    """Passes requests on to MLflow. Those whose path matches ``where`` are answered with ``status``,
    cut off in the middle (status 0), or never (status -1)."""

    def __init__(self, upstream: str) -> None:
        self.where: str | None = None
        self.status = 503
        self.asked: list[str] = []
        self.closing = threading.Event()
        self._upstream = httpx.Client(base_url=upstream, timeout=60)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def trouble(self, where: str, status: int) -> None:
        self.where, self.status = where, status

    def heal(self) -> None:
        self.where = None

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._upstream.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        doorway = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                doorway.asked.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                is_bad = doorway.where is not None and re.search(doorway.where, self.path)
                if is_bad and doorway.status < 0:
                    doorway.closing.wait(60)
                    return
                if is_bad and doorway.status > 0:
                    self.reply(doorway.status, b"no", "text/plain", 2)
                    return
                headers = {
                    key: value
                    for key, value in self.headers.items()
                    if key.lower() in ("content-type", "accept")
                }
                got = doorway._upstream.request(self.command, self.path, content=body, headers=headers)
                content = got.content[: len(got.content) // 2] if is_bad else got.content
                kind = got.headers.get("content-type", "text/plain")
                self.reply(got.status_code, content, kind, len(got.content))

            def reply(self, status: int, content: bytes, kind: str, length: int) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(length))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def doorway(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doorway]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = Doorway(mlflow_uri)
    yield found
    found.close()
