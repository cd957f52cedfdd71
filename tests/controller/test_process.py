"""`python -m seatrial.controller` as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from seatrial.controller.__main__ import MOST_POLL_S, bind_address, poll_interval_s
from seatrial.controller.loop import STALLED_S
from seatrial.errors import UserError
from seatrial.store import Store

pytestmark = pytest.mark.slow
START = [sys.executable, "-m", "seatrial.controller"]


def environment(folder: Path, port: int, **more: str) -> dict[str, str]:
    nowhere = "http://127.0.0.1:9"
    return {
        **os.environ,
        "SEATRIAL_HOME": str(folder),
        "SEATRIAL_STORE_URL": f"sqlite:///{folder / 'store.db'}",
        "SEATRIAL_CONTROLLER_URL": f"http://127.0.0.1:{port}",
        "MLFLOW_TRACKING_URI": nowhere,
        "RAY_API_SERVER_ADDRESS": nowhere,
        "SEATRIAL_POLL_S": "0.2",
        **more,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(process: subprocess.Popen[str], port: int, is_so: Callable[[dict[str, Any]], bool]) -> Any:
    """Its health once ``is_so``."""
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            health = httpx.get(f"http://127.0.0.1:{port}/healthz").json()
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        if is_so(health):
            return health
        time.sleep(0.05)


@contextmanager
def started(folder: Path, port: int, **more: str) -> Iterator[subprocess.Popen[str]]:
    env = environment(folder, port, **more)
    process = subprocess.Popen(START, env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_it_answers_passes_and_gives_its_lease_back_on_sigterm(tmp_path: Path):
    port = free_port()
    with started(tmp_path, port) as process:
        health = wait_for(process, port, lambda health: health["passes"] >= 2)
        assert (health["ok"], health["leads"], health["error"]) == (True, True, None)
        assert httpx.get(f"http://127.0.0.1:{port}/status").json()["services"] == []
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
    assert "Traceback" not in errors
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    assert store.take_lease("controller", "next", now=time.time(), lasts_s=1) == "next"
    store.close()


def test_a_second_start_on_the_same_port_is_one_line_and_does_nothing(tmp_path: Path):
    port = free_port()
    with started(tmp_path, port) as process:
        wait_for(process, port, lambda health: health["passes"] >= 1)
        env = environment(tmp_path, port, SEATRIAL_STORE_URL=f"sqlite:///{tmp_path / 'other.db'}")
        done = subprocess.run(START, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"seatrial: SEATRIAL_CONTROLLER_URL: 127.0.0.1:{port}: Address already in use")
    assert not (tmp_path / "other.db").exists()


def test_a_second_controller_on_the_same_store_stands_by(tmp_path: Path):
    first, second = free_port(), free_port()
    with started(tmp_path, first) as one, started(tmp_path, second) as two:
        told = [
            wait_for(process, port, lambda health: health["leader"] is not None)
            for process, port in ((one, first), (two, second))
        ]
    assert sorted(health["leads"] for health in told) == [False, True]
    assert len({health["leader"] for health in told}) == 1


def test_a_store_that_is_no_store_is_said_and_does_not_end_it(tmp_path: Path):
    (tmp_path / "store.db").write_text("this is no database, and far too long to be an empty one" * 20)
    port = free_port()
    with started(tmp_path, port) as process:
        health = wait_for(process, port, lambda health: health["passes"] >= 2)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 503
    assert health["ok"] is False
    assert "file is not a database" in health["error"]


@pytest.mark.parametrize(
    ("url", "bind", "address"),
    [
        ("http://127.0.0.1:8787", None, ("127.0.0.1", 8787)),
        ("http://[::1]:9000", None, ("::1", 9000)),
        ("http://controller.example:9000", None, ("127.0.0.1", 9000)),
        ("https://controller.example", None, ("127.0.0.1", 8787)),
        ("http://controller.example:9000", "0.0.0.0", ("0.0.0.0", 9000)),  # noqa: S104
        ("http://controller.example:9000", "[::]:80", ("::", 80)),
    ],
)
def test_it_listens_on_loopback_unless_told_otherwise(url: str, bind: str | None, address: tuple[str, int]):
    assert bind_address(url, bind) == address


@pytest.mark.parametrize("bind", [":80", "a:b", "http://0.0.0.0", "0.0.0.0:99999", "a/b"])
def test_a_bind_address_that_is_none_is_refused(bind: str):
    with pytest.raises(UserError, match="SEATRIAL_CONTROLLER_BIND"):
        bind_address("http://127.0.0.1:8787", bind)


def test_a_bad_setting_is_one_line_and_exit_2(tmp_path: Path):
    env = environment(tmp_path, 8787, SEATRIAL_POLL_S="often")
    done = subprocess.run(START, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip() == "seatrial: SEATRIAL_POLL_S: often: give seconds between 0.05 and 60"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "often", "61", "1e9"])
def test_intervals_that_make_no_sense_are_refused(text: str):
    with pytest.raises(UserError, match="SEATRIAL_POLL_S"):
        poll_interval_s(text)


def test_between_two_looks_nobody_takes_it_for_one_that_hangs():
    """Its health is bad and its lease runs out when it has not looked for so long."""
    assert 2 * MOST_POLL_S < STALLED_S
    assert poll_interval_s(str(MOST_POLL_S)) == MOST_POLL_S


def test_without_a_setting_it_looks_every_two_seconds():
    assert poll_interval_s(None) == 2.0
