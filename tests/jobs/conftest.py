"""A tiny base model, tiny data, a Ray cluster of the tests' own, and jobs as processes that can be killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seatrial.registry import runs
from tests.tiny import make_base

sys.path.insert(0, str(Path(__file__).parent))  # tests have no packages, and this folder has a helper

from job_processes import (
    S3_ENVIRONMENT,
    Cluster,
    Job,
    S3Server,
    Start,
    Uninterrupted,
    curves,
    launch,
    lora_recipe,
    ray_cluster,
    write_data,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that share a tiny model wait for each other, on a busy machine for minutes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pairs.jsonl` and `text.jsonl`: a task that a tiny model can learn."""
    place = tmp_path_factory.mktemp("data")
    write_data(place)
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
    with ray_cluster(tmp_path_factory.mktemp("cluster"), mlflow_uri) as found:
        yield found


@pytest.fixture(scope="session")
def start_job(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a job from a recipe's values; what still runs at the end is killed."""
    started: list[Job] = []

    def start(
        values: dict[str, Any], *, module: str = "train", environment: dict[str, str] | None = None
    ) -> Job:
        place = tmp_path_factory.mktemp("job")
        program = ("-m", f"seatrial_jobs.{module}")
        started.append(launch(cluster, values, place, program, environment=environment))
        return started[-1]

    yield start
    for job in started:
        if job.process.poll() is None:
            job.kill()


@pytest.fixture(scope="session")
def uninterrupted(
    start_job: Start,
    tiny_base: Path,
    data: Path,
    mlflow_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Uninterrupted:
    """What killed jobs are compared with."""
    recipe = lora_recipe(tiny_base, data, tmp_path_factory.mktemp("whole"), checkpoint_every=5)
    refused = start_job({**recipe, "gate": {**recipe["gate"], "max_loss": 0.001}})
    assert refused.wait() == 3, "\n".join(refused.lines())
    run_id = refused.events("run")[0]["run_id"]
    then = curves(run_id, mlflow_uri)
    gate = runs.tags_of(run_id, uri=mlflow_uri)["seatrial.gate"]
    registered = start_job(recipe)
    assert registered.wait() == 0, "\n".join(registered.lines())
    return Uninterrupted(recipe, refused, registered, then, gate)


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
