"""HAProxy as Ray Serve configures and starts it, in front of servers that hold their requests."""

from __future__ import annotations

import asyncio
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def front(folder: Path, port: int, servers: list[int]) -> None:
    """Write the configuration with Ray's own templates and run HAProxy. Environment: as Serve's."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        has_received_routes=True,
        has_received_servers=True,
    )
    listed = [ServerConfig(f"server{each}", "127.0.0.1", each) for each in servers]
    backends = {"http-svc": BackendConfig("http-svc", path_prefix="/", app_name="svc", servers=listed)}

    async def run() -> None:
        api = HAProxyApi(config, backends, str(folder / "haproxy.cfg"))
        await api.start()
        assert api._proc is not None
        await api._proc.wait()

    asyncio.run(run())


def server(folder: Path, port: int) -> None:
    """Take requests whole, and answer each with this server's port once the file `go` is there."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("well")

        def do_POST(self) -> None:
            size = int(self.headers["content-length"])
            assert len(self.rfile.read(size)) == size
            with (folder / "taken").open("a") as file:
                file.write(f"{port}\n")
            while not (folder / "go").exists():
                time.sleep(0.01)
            self._answer(str(port))

        def _answer(self, text: str) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    what, where, *ports = sys.argv[1:]
    if what == "front":
        front(Path(where), int(ports[0]), [int(port) for port in ports[1:]])
    else:
        server(Path(where), int(ports[0]))
