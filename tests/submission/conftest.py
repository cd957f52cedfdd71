"""Jobs as values; a cluster that is simulated, with a clock that is set and Ray's answers; a real stack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # tests have no packages, and this folder has a helper

from real import PARTS, Stack
from simulated import World

from seatrial.stack import ports
from seatrial.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(f"sqlite:///{tmp_path / 'store.db'}")
    made.migrate()
    return made


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    return World(store, tmp_path)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("queue"))
    chosen = zip(PARTS, ports.inner(len(PARTS), ports.Ports()), strict=True)
    flags = [part for name, port in chosen for part in (f"--{name}-port", str(port))]
    started = made.run("up", *flags, "--ray-cpus", "4")
    assert started.returncode == 0, started.stderr
    values = {"backoff_s": 1, "gpu_hour_price": 2.0, "unschedulable_s": 2}
    (made.folder / ".seatrial" / "jobs.yaml").write_text(yaml.safe_dump(values))
    yield made
    for process in made.controllers:
        process.kill()
        process.wait(10)
    made.run("down")
