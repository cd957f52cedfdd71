"""A real stack in a folder, and what tests of the queue do with it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seatrial.config.addresses import Addresses
from seatrial.registry import runs
from seatrial.store import Store
from seatrial.store.job import Job
from tests.tiny import make_base

COMMAND = [sys.executable, "-m", "seatrial.cli.main"]
PARTS = ("mlflow", "ray", "dashboard", "serve", "controller")
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


def environment() -> dict[str, str]:
    foreign = ("SEATRIAL_", "RAY_", "MLFLOW_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@dataclass
class Stack:
    """A stack in a folder, and what the tests do with it."""

    folder: Path
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def addresses(self) -> Addresses:
        return Addresses.resolve({}, self.folder)

    def run(
        self, *arguments: str, timeout_s: float = 300, below: str = "."
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder / below,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def submit(self, name: str, script: str, *options: str) -> str:
        """Queue a Python script and return the job's id."""
        (self.folder / f"{name}.py").write_text(script)
        done = self.run("jobs", "submit", "--name", name, "--detach", *options, "--", "python", f"{name}.py")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[1]

    def job(self, job_id: str) -> Job:
        store = Store(self.addresses.store_url)
        found = store.job(job_id)
        store.close()
        assert found is not None
        return found

    def ended(self, job_id: str, timeout_s: float = 120) -> Job:
        end = time.monotonic() + timeout_s
        while (job := self.job(job_id)).state in ("queued", "running"):
            assert time.monotonic() < end, job
            time.sleep(0.3)
        return job

    def kill_controller(self) -> None:
        if self.controllers:
            self.controllers[-1].kill()
            self.controllers[-1].wait(10)
            return
        state = json.loads((self.folder / ".seatrial" / "stack.json").read_text())
        os.kill(next(m["pid"] for m in state["members"] if m["name"] == "controller"), signal.SIGKILL)

    @property
    def logs(self) -> Path:
        """What a dry run may change."""
        folder = self.folder / "logs"
        folder.mkdir(exist_ok=True)
        return folder

    def start_controller(self) -> None:
        env = {**environment(), **self.addresses.environment(), "RAY_AUTH_MODE": "token"}
        command = [sys.executable, "-m", "seatrial.controller"]
        with (self.logs / "controller.log").open("ab") as log:
            self.controllers.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def write_recipe(folder: Path, steps: int) -> None:
    """A tiny base and data to join words with."""
    chance = random.Random(0)  # noqa: S311
    pairs = [(chance.choice(WORDS), chance.choice(WORDS)) for _ in range(300)]
    rows = [{"prompt": f"Join {a} and {b}, {n}", "response": f"{a} {b}"} for n, (a, b) in enumerate(pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_base(folder / "base", [" ".join(WORDS)] * 50)
    recipe: dict[str, Any] = {
        "name": "join-words",
        "service": "join-words",
        "data": {"train": "pairs.jsonl"},
        "model": {"base": "./base"},
        "method": {"type": "lora", "rank": 4},
        "run": {
            "steps": steps,
            "seq_tokens": 256,
            "batch_rows": 16,
            "evaluate_every": 150,
            "learning_rate": 0.01,
        },
        "resources": {"workers": 1, "device": "cpu", "threads_per_worker": 1},
        "gate": {"sample_rows": 8, "max_new_tokens": 8},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def everything(folder: Path) -> dict[str, int]:
    """Every file but the stack's logs, with its size."""
    found = [path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
    return {
        str(path): path.stat().st_size
        for path in found
        if not path.name.startswith(("store.db", "mlflow.db"))
    }


def runs_of(stack: Stack) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(stack.addresses.mlflow_uri)
    experiment = client.get_experiment_by_name(runs.EXPERIMENT)
    if experiment is None:
        return []
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id])]
