"""Jobs and clusters as processes that a test can watch and kill."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

MARK = "SEATRIAL_TEST_CLUSTER"


@dataclass
class Cluster:
    """A Ray head of its own. Every process of it carries ``mark`` in its environment."""

    address: str
    environment: dict[str, str]
    mark: str

    def workers(self) -> list[psutil.Process]:
        """The training workers that run now."""
        return [p for p in self.processes() if "RayTrainWorker" in " ".join(_command(p))]

    def processes(self) -> list[psutil.Process]:
        """Every process of the cluster and of its drivers."""
        return [p for p in psutil.process_iter() if self._is_mine(p)]

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except (psutil.Error, OSError):
            return False


@dataclass
class Job:
    """One `python -m seatrial_jobs.…` process."""

    process: subprocess.Popen[str]
    output: Path

    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    def events(self, name: str) -> list[dict[str, Any]]:
        prefix = "::seatrial:: "
        found = [json.loads(line[len(prefix) :]) for line in self.lines() if line.startswith(prefix)]
        return [event for event in found if event["event"] == name]

    def wait(self, timeout_s: float = 420) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError("\n".join(self.lines())) from None

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


Start = Callable[..., Job]


class S3Server:
    """A real S3 server on a directory, which can go away and come back at the same address."""

    def __init__(self, place: Path) -> None:
        (place / "bucket").mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        rclone = str(Path(sys.executable).parent / "rclone")
        self._command = [rclone, "serve", "s3", str(place), f"--addr={self.address}"]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [*self._command, "--auth-key=seatrial,seatrial-secret"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(self._answers, timeout_s=30)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def uri(self, prefix: str) -> str:
        return f"s3://bucket/{prefix}?endpoint_override={self.address}&scheme=http"

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}").status_code < 500
        except httpx.TransportError:
            return False


def lora_recipe(base: Path, data: Path, storage: Path | str, **run: Any) -> dict[str, Any]:
    """40 steps of about a tenth of a second on 2 workers."""
    settings = {
        "steps": 40,
        "seq_tokens": 256,
        "batch_rows": 16,
        "accumulate": 2,
        "checkpoint_every": 8,
        "evaluate_every": 20,
        "storage": str(storage),
        "learning_rate": 0.01,
        **run,
    }
    return {
        "name": "join-words",
        "service": "join-words",
        "data": {"train": str(data / "pairs.jsonl")},
        "model": {"base": str(base)},
        "method": {"type": "lora", "rank": 4, "dropout": 0.1},
        "run": settings,
        "resources": {"workers": 2, "cpus_per_worker": 1, "threads_per_worker": 1},
        "gate": {"sample_rows": 8, "max_new_tokens": 8},
    }


def until(condition: Callable[[], Any], *, timeout_s: float = 300, every_s: float = 0.2) -> Any:
    """Wait for a true value and return it."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(every_s)
    raise AssertionError("waited too long")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
