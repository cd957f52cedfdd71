"""A private PostgreSQL from Debian's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALL = "install Debian's package postgresql: apt-get install -y postgresql"


@contextmanager
def running() -> Iterator[str]:
    """The URL of a server that runs until the end.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="st-pg-"))  # the socket in it keeps its name short
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **_as_postgres()}
    initdb = [binaries / "initdb", "-D", data, "-U", "seatrial", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(initdb, check=True, timeout=120, **quiet)
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder)]
    server = subprocess.Popen([binaries / "postgres", "-D", data, *options], **quiet)
    try:
        url = f"postgresql+psycopg://seatrial@127.0.0.1:{port}/postgres"
        _wait_for(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    """Folder of PostgreSQL's programs; as root it is installed when it is missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-yq", "postgresql"]):
            subprocess.run(command, env=quiet, check=True, timeout=300, stdout=subprocess.DEVNULL)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise FileNotFoundError(f"no PostgreSQL: {INSTALL}")
    return found[-1].parent


def _as_postgres() -> dict[str, object]:
    """PostgreSQL refuses to run as root, so as root its processes take the user that its package made."""
    if os.geteuid() != 0:
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "PostgreSQL ended while starting"
        try:
            psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL did not answer"
            time.sleep(0.2)
