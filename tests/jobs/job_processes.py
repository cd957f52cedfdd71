"""Jobs and clusters as processes that a test can watch and kill."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from seatrial.registry import runs

MARK = "SEATRIAL_TEST_CLUSTER"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "seatrial",
    "AWS_SECRET_ACCESS_KEY": "seatrial-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
WORDS = [
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta"),
    *("eta", "theta", "iota", "kappa", "lambda", "mu"),
]


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


CURVES = ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss")
"""Metrics that the recipe alone decides."""


def curves(run_id: str, uri: str) -> dict[str, list[tuple[int, float]]]:
    """What MLflow has of each, by step."""
    return {key: runs.history(run_id, key, uri=uri) for key in CURVES}


@dataclass(frozen=True)
class Uninterrupted:
    """A job that nobody has killed: first with a gate that it could not pass, then run again with another."""

    recipe: dict[str, Any]
    refused: Job
    registered: Job
    curves: dict[str, list[tuple[int, float]]]
    """By step, as they were when the gate had refused it."""
    gate: str
    """What the run's tag said of the gate then."""


def launch(
    cluster: Cluster,
    values: dict[str, Any],
    place: Path,
    program: Sequence[str] = ("-m", "seatrial_jobs.train"),
    *arguments: str,
    environment: dict[str, str] | None = None,
) -> Job:
    """Start a recipe's driver in the folder ``place``."""
    recipe, output = place / "recipe.yaml", place / "output.txt"
    recipe.write_text(yaml.safe_dump(values))
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *program, str(recipe), *arguments],
            env={**cluster.environment, **(environment or {})},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=place,
        )
    return Job(process, output)


@contextlib.contextmanager
def ray_cluster(place: Path, mlflow_uri: str, name: str = "jobs") -> Iterator[Cluster]:
    """Ray with 4 logical CPUs; its files and its home are in ``place``, and ``name`` is its own."""
    gcs, client, agent, metrics = _free_ports(4)
    mark = f"{name}-{os.getpid()}"
    environment = {
        **os.environ,
        MARK: mark,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "SEATRIAL_HOME": str(place / "home"),
        "RAY_USAGE_STATS_ENABLED": "0",
        **S3_ENVIRONMENT,
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=4", "--block"),
        *(f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--metrics-export-port={metrics}", "--include-dashboard=false"),
        *(f"--temp-dir=/tmp/ray_{mark}", "--node-ip-address=127.0.0.1", "--disable-usage-stats"),
        "--object-store-memory=200000000",
    ]
    without_address = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    log = (place / "head.log").open("wb")
    head = subprocess.Popen(command, env=without_address, stdout=log, stderr=log, start_new_session=True)
    found = Cluster(f"127.0.0.1:{gcs}", environment, mark)

    def answers() -> bool:
        said = Path(log.name).read_text()
        assert head.poll() is None, said
        return "Ray runtime started" in said

    try:
        until(answers, timeout_s=90)
        yield found
    finally:
        head.terminate()
        for process in found.processes():
            kill(process)
        head.wait(30)
        log.close()


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


def write_data(place: Path) -> None:
    """`pairs.jsonl` and `text.jsonl`: a task that a tiny model can learn."""
    chance = random.Random(0)  # noqa: S311
    with (place / "pairs.jsonl").open("w") as file:
        for number in range(300):
            first, second = chance.choice(WORDS), chance.choice(WORDS)
            row = {"prompt": f"Join {first} and {second}, {number}", "response": f"{first} {second}"}
            file.write(json.dumps(row) + "\n")
    with (place / "text.jsonl").open("w") as file:
        for _ in range(200):
            file.write(json.dumps({"text": " ".join(chance.choice(WORDS) for _ in range(30))}) + "\n")


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


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


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
