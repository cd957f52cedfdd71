"""`python -m seatrial.controller` as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from seatrial.controller.__main__ import poll_interval_s
from seatrial.errors import UserError

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


def test_it_answers_passes_and_ends_on_sigterm(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(START, env=environment(tmp_path, port), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        health = {"passes": 0}
        while health["passes"] < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                health = httpx.get(f"http://127.0.0.1:{port}/healthz").json()
            except httpx.TransportError:
                time.sleep(0.2)
        assert (health["ok"], health["error"]) == (True, None)
        assert httpx.get(f"http://127.0.0.1:{port}/status").json()["services"] == []
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors


def test_a_bad_setting_is_one_line_and_exit_2(tmp_path: Path):
    env = environment(tmp_path, 8787, SEATRIAL_POLL_S="often")
    done = subprocess.run(START, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip() == "seatrial: SEATRIAL_POLL_S: often: give seconds between 0.05 and 3600"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "often", "1e9"])
def test_intervals_that_make_no_sense_are_refused(text: str):
    with pytest.raises(UserError, match="SEATRIAL_POLL_S"):
        poll_interval_s(text)


def test_without_a_setting_it_looks_every_two_seconds():
    assert poll_interval_s(None) == 2.0
