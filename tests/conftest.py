"""What tests of several areas share: one real MLflow server for the whole run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home: Path = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(home / "artifacts"), "--serve-artifacts"]
    with (home / "server.log").open("wb") as log:
        # Its job runner would be five more processes for features that are not used here.
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # Webhooks to loopback, as `seatrial up` allows them.
        env |= {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
        env |= {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": urlsafe_b64encode(os.urandom(32)).decode()}
        env |= {"MLFLOW_WEBHOOK_CACHE_TTL": "1"}  # seconds until a webhook that was just made is used
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for_mlflow(uri, server, deadline_s=time.monotonic() + 120)
        yield uri
    finally:
        server.terminate()
        server.wait(30)


def wait_for_mlflow(uri: str, server: subprocess.Popen[bytes], deadline_s: float) -> None:
    while time.monotonic() < deadline_s:
        assert server.poll() is None, "the MLflow server ended while starting"
        try:
            if httpx.get(f"{uri}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise TimeoutError(f"{uri} did not answer")
