"""A private PostgreSQL from Debian's packages."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

INSTALL = "install Debian's package postgresql: apt-get install -y postgresql"


class Server:
    """One database in a folder of its own, which can be killed and started again where it was."""

    def __init__(self) -> None:
        """Make the database.

        Raises:
            FileNotFoundError: PostgreSQL is not installed.
        """
        self._binaries = _binaries()
        self._folder = Path(tempfile.mkdtemp(prefix="st-pg-"))  # the socket in it keeps its name short
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"postgresql+psycopg://seatrial@127.0.0.1:{self._port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        initdb = [self._binaries / "initdb", "-D", self._data, "-U", "seatrial", "-A", "trust", "--no-sync"]
        subprocess.run([*initdb, "-E", "UTF8"], check=True, timeout=120, **self._quiet)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _quiet(self) -> dict[str, object]:
        return {
            "cwd": self._folder,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            **_as_postgres(),
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["-p", str(self._port), "-c", "listen_addresses=127.0.0.1", "-k", str(self._folder)]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, *options], **self._quiet
        )
        _wait_for(self.url, self._process)

    def kill(self) -> None:
        """SIGKILL of the postmaster; the others end when they notice."""
        assert self._process is not None
        others = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        _, left = psutil.wait_procs(others, 30)
        assert not left, "PostgreSQL's processes outlive their postmaster"

    def close(self) -> None:
        """End it and remove the database."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # it does not wait for its clients to leave
            self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def server() -> Iterator[Server]:
    """A server that runs until the end.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    made = Server()
    try:
        made.start()
        yield made
    finally:
        made.close()


@contextmanager
def running() -> Iterator[str]:
    """The URL of a server that runs until the end.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    with server() as made:
        yield made.url


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
