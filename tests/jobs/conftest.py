"""A tiny base model, tiny data, a Ray cluster of the tests' own, and jobs as processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny import make_base

sys.path.insert(0, str(Path(__file__).parent))  # tests have no packages, and this folder has a helper

from job_processes import MARK, Cluster, Job, S3Server, Start, kill, until

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
]

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "seatrial",
    "AWS_SECRET_ACCESS_KEY": "seatrial-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pairs.jsonl` and `text.jsonl`: a task that a tiny model can learn."""
    place = tmp_path_factory.mktemp("data")
    chance = random.Random(0)  # noqa: S311
    with (place / "pairs.jsonl").open("w") as file:
        for number in range(300):
            first, second = chance.choice(WORDS), chance.choice(WORDS)
            row = {"prompt": f"Join {first} and {second}, {number}", "response": f"{first} {second}"}
            file.write(json.dumps(row) + "\n")
    with (place / "text.jsonl").open("w") as file:
        for _ in range(200):
            file.write(json.dumps({"text": " ".join(chance.choice(WORDS) for _ in range(30))}) + "\n")
    return place


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A Llama of 100 thousand parameters with a tokenizer, as a directory."""
    place = tmp_path_factory.mktemp("base")
    make_base(place, (data / "text.jsonl").read_text().splitlines())
    return place


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Iterator[Cluster]:
    """Ray with 4 logical CPUs, found by its address and ended by its mark."""
    gcs, client, agent, metrics = _free_ports(4)
    place = Path(f"/tmp/ray_jobs_{os.getpid()}")
    mark = f"jobs-{os.getpid()}"
    environment = {
        **os.environ,
        MARK: mark,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "SEATRIAL_HOME": str(tmp_path_factory.mktemp("home")),
        "RAY_USAGE_STATS_ENABLED": "0",
        **S3_ENVIRONMENT,
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=4", "--block"),
        *(f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--metrics-export-port={metrics}", "--include-dashboard=false", f"--temp-dir={place}"),
        *("--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=200000000"),
    ]
    without_address = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    log = (tmp_path_factory.mktemp("ray") / "head.log").open("wb")
    head = subprocess.Popen(command, env=without_address, stdout=log, stderr=log, start_new_session=True)
    found = Cluster(f"127.0.0.1:{gcs}", environment, mark)
    try:
        _wait_for_ray(found, head, Path(log.name))
        yield found
    finally:
        head.terminate()
        for process in found.processes():
            kill(process)
        head.wait(30)
        log.close()


@pytest.fixture(scope="session")
def start_job(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a job from a recipe's values; what still runs at the end is killed."""
    started: list[Job] = []

    def start(
        values: dict[str, Any], *, module: str = "train", environment: dict[str, str] | None = None
    ) -> Job:
        place = tmp_path_factory.mktemp("job")
        recipe = place / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(values))
        output = place / "output.txt"
        with output.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", f"seatrial_jobs.{module}", str(recipe)],
                env={**cluster.environment, **(environment or {})},
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=place,
            )
        started.append(Job(process, output))
        return started[-1]

    yield start
    for job in started:
        if job.process.poll() is None:
            job.kill()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that tests of the whole session share; whoever stops it starts it again."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may ask the S3 server as well."""
    for key, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _wait_for_ray(cluster: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        assert head.poll() is None, log.read_text()
        return "Ray runtime started" in log.read_text()

    until(answers, timeout_s=90)
