"""A real Ray cluster with Ray Serve, with token authentication, and a controller behind its gate."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from seatrial.controller.auth import WINDOW_S
from tests.controller.gate import TOKEN, Site
from tests.controller.server import serving

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Cluster:
    dashboard: str
    serve_url: str
    token: str
    store_url: str
    broken: Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("cluster")
    ray_home = Path(tempfile.mkdtemp(prefix="st-c-"))  # unix sockets keep its name short
    port, dashboard, client, http = (_free_port() for _ in range(4))
    token = secrets.token_hex(32)
    broken = home / "broken"
    broken.write_text("")
    store_url = f"sqlite:///{home / 'store.db'}"
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",  # a busy machine
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_SLOW_STARTUP_WARNING_S": "5",  # until it says that a replica finds no room
        "PYTHONPATH": str(Path(__file__).parent),
        "SEATRIAL_STORE_URL": store_url,
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "ECHO_BROKEN": str(broken),
    }
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=4"]
    command += [f"--node-ip-address={LOOPBACK}", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-host={LOOPBACK}", f"--ray-client-server-port={client}"]
    command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--temp-dir={ray_home}", "--disable-usage-stats"]
    with (home / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://{LOOPBACK}:{dashboard}"
        _wait_for(f"{url}/api/serve/applications/", token, head)
        yield Cluster(url, f"http://{LOOPBACK}:{http}", token, store_url, broken)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(head.pid).children(recursive=True)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)
        head.kill()
        head.wait(10)
        shutil.rmtree(ray_home, ignore_errors=True)


def _wait_for(url: str, token: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert head.poll() is None, "Ray ended while starting"
        try:
            if httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def shut_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Site]]:
    site = Site(tmp_path_factory.mktemp("shut"), TOKEN)
    with serving(site.gate) as url:
        yield url, site


@pytest.fixture
def shut(shut_site: tuple[str, Site]) -> str:
    """The address of a controller with a token; wrong tokens of other tests are out of its window."""
    shut_site[1].clock.now += WINDOW_S + 1
    return shut_site[0]
