"""An ASGI application behind a real server, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Its address while it is served on loopback; ``app`` may be a whole configuration of the server."""
    made = (
        app if isinstance(app, uvicorn.Config) else uvicorn.Config(app, log_level="warning", access_log=False)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(made)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
