"""A machine that is taken away with notice costs no step: the workers go on elsewhere from what they kept."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from job_processes import MARK, Cluster, Job, kill, lora_recipe, until
from ray.exceptions import RayActorError
from ray.train import PreemptionInfo
from torch import nn
from transformers import AutoModelForCausalLM

from seatrial.config.recipe import TrainRecipe
from seatrial.config.run import RunSection
from seatrial.registry import runs
from seatrial_jobs import ledger, methods
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.checkpoints.keeper import Keeper
from seatrial_jobs.loop import Schedule, Step, optimizer_for, train
from seatrial_jobs.prepare import prepare
from seatrial_jobs.storage import Storage
from seatrial_jobs.workers import preemption, worker
from seatrial_jobs.workers.elastic import Room
from seatrial_jobs.workers.preemption import LeftError, Notice
from seatrial_jobs.workers.watch import Watch
from tests.conftest import free_port

ALONE = Share(0, 1, torch.device("cpu"))
STEPS = 4000
"""More than the test waits for."""


class Machines:
    """A Ray cluster whose nodes are processes of this machine, with room for one worker on each."""

    def __init__(self, place: Path, mlflow_uri: str) -> None:
        self.gcs, self.place = free_port(), place
        self.cluster = Cluster(
            f"127.0.0.1:{self.gcs}",
            {
                **os.environ,
                MARK: f"machines-{self.gcs}",
                "RAY_AUTH_MODE": "disabled",
                "RAY_ADDRESS": f"127.0.0.1:{self.gcs}",
                "MLFLOW_TRACKING_URI": mlflow_uri,
                "SEATRIAL_HOME": str(place),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60",
            },
            f"machines-{self.gcs}",
        )
        self.nodes: list[subprocess.Popen[bytes]] = []
        head = ("--head", f"--port={self.gcs}", f"--ray-client-server-port={free_port()}")
        self._start(*head, "--include-dashboard=false", f"--temp-dir=/tmp/ray_machines_{self.gcs}")

    def join(self) -> subprocess.Popen[bytes]:
        """Add a node; as in a pod, SIGTERM to its process is the notice."""
        return self._start(f"--address=127.0.0.1:{self.gcs}")

    def _start(self, *how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *how, "--num-cpus=1", "--block"]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=100000000"]
        command += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
        environment = {k: v for k, v in self.cluster.environment.items() if k != "RAY_ADDRESS"}
        log = self.place / f"node-{len(self.nodes)}.log"
        with log.open("wb") as stream:
            node = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        self.nodes.append(node)

        def runs_now() -> bool:
            assert node.poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        until(runs_now, timeout_s=90)
        return node

    def submit(self, values: dict[str, Any]) -> Job:
        recipe, output = self.place / "recipe.yaml", self.place / "output.txt"
        recipe.write_text(yaml.safe_dump(values))
        command = [sys.executable, "-m", "seatrial_jobs.train", str(recipe)]
        with output.open("w") as stream:
            process = subprocess.Popen(
                command,
                env=self.cluster.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.place,
            )
        return Job(process, output)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_workers_are_asked_once_a_second_whatever_a_step_takes() -> None:
    clock, asked = Clock(), []
    notice = Notice(ALONE, lambda: asked.append(clock.now), Room(), clock)
    for step in range(1, 401):
        clock.now += 0.01 if step <= 200 else 0.1
        assert notice.after(step) is None
    fast, slow = [at for at in asked if at <= 2], [at for at in asked if at > 3]
    assert len(fast) <= 5
    assert 0.9 < (slow[-1] - slow[0]) / (len(slow) - 1) < 1.2


class Bench:
    """A watch over a tiny model that is told to go after the third step."""

    def __init__(self, place: Path, room: Room, **run: Any) -> None:
        self.storage = Storage.of("job", place)
        section = RunSection(steps=100, seq_tokens=16, batch_rows=4, **run)
        spec: Any = SimpleNamespace(
            recipe=SimpleNamespace(run=section),
            storage=self.storage,
            driver=ledger.take_over(self.storage, force=False).driver,
            tidies=True,
        )
        self.done = 0
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        self.room = room
        notice = Notice(ALONE, self.asked, room)
        schedule = Schedule(1.0, 0, 100)
        keeper = Keeper(spec, ALONE, model, optimizer, schedule, None)
        self.watch = Watch(keeper, None, nullcontext, notice=notice)

    def asked(self) -> PreemptionInfo | None:
        return (
            PreemptionInfo(None, {"another": [1]})
            if self.done == 3 and not self.room.wanted.is_set()
            else None
        )

    def train(self) -> None:
        for self.done in range(1, 10):
            self.watch(Step(self.done, torch.tensor(1.0), torch.tensor(0.5), 0.1))

    def kept(self) -> list[int]:
        return [checkpoint.step_of(kept.name) for kept in checkpoint.complete(self.storage)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "ASK_EVERY_S", 0.0)
    monkeypatch.setattr(preemption, "CHANGE_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_worker_that_is_told_to_go_has_kept_its_step_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Room())
    with pytest.raises(RayActorError, match="another") as left:
        bench.train()
    assert pickle.loads(pickle.dumps(left.value)).preempted  # noqa: S301
    assert (bench.done, bench.kept()) == (3, [3])
    assert bench.room.ready.is_set(), "a change that was decided on meanwhile waits for nothing"


@pytest.mark.usefixtures("at_once")
def test_that_workers_left_in_time_is_told_by_those_that_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(Keeper, "_tag", lambda _, key, value: told.append((key, value)))
    with pytest.raises(RayActorError):
        Bench(tmp_path, Room()).train()
    assert Bench(tmp_path, Room()).watch.restore() == 3
    assert told == [("seatrial.preempted_at", "3"), ("seatrial.resumed_at", "3")]


@pytest.mark.usefixtures("at_once")
def test_workers_whose_number_changes_are_ready_only_when_their_step_is_kept(tmp_path: Path) -> None:
    room = Room()
    room.wanted.set()
    bench = Bench(tmp_path, room)
    with pytest.raises(LeftError, match="number of workers"):
        bench.train()
    assert bench.kept() == [1]
    assert room.ready.is_set()


@pytest.mark.usefixtures("at_once")
def test_what_is_due_at_the_step_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, Room(), evaluate_every=3, checkpoint_every=3)
    monkeypatch.setattr(bench.watch, "evaluate", lambda step: 0.5)
    with pytest.raises(RayActorError):
        bench.train()
    assert [kept.heldout for kept in checkpoint.complete(bench.storage)].count(0.5) == 1


@pytest.mark.usefixtures("at_once")
def test_what_a_worker_was_ended_in_is_measured_when_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, Room(), evaluate_every=3)
    monkeypatch.setattr(bench.watch, "evaluate", ended)
    with pytest.raises(EnoughError):
        bench.train()
    assert bench.kept() == [3]
    again, measured = Bench(tmp_path, Room(), evaluate_every=3), list[int]()
    monkeypatch.setattr(again.watch, "evaluate", measured.append)
    assert again.watch.restore() == 3
    assert measured == [3]


def ended(step: int) -> float:
    raise EnoughError(step)


class EnoughError(Exception):
    """As many steps as are compared, or as there is time for."""


@pytest.fixture
def machines(tmp_path: Path, mlflow_uri: str) -> Iterator[Machines]:
    found = Machines(tmp_path, mlflow_uri)
    try:
        yield found
    finally:
        for process in found.cluster.processes():
            kill(process)
        for node in found.nodes:
            node.wait(30)


def undisturbed(values: dict[str, Any], steps: int) -> list[float]:
    """The first losses of one worker that nobody takes away."""
    recipe = TrainRecipe.model_validate(values)
    rows = prepare(recipe, Path.cwd()).train
    worker._seed(recipe.run.seed)
    base = AutoModelForCausalLM.from_pretrained(values["model"]["base"], dtype=torch.float32)
    model = methods.build(recipe.method).prepare(base)
    run, found = recipe.run, list[float]()

    def keep(step: Step) -> None:
        found.append(float(step.loss))
        if step.number == steps:
            raise EnoughError

    batches = Batches(rows, run.batch_rows, run.accumulate, run.seed, ALONE)
    with pytest.raises(EnoughError):
        train(
            *(model, optimizer_for(model, run), batches, Schedule.of(run, STEPS)),
            clip_norm=run.clip_norm,
            after_step=keep,
        )
    return found


@pytest.mark.slow
def test_a_drained_node_costs_workers_that_share_a_model_no_step_and_a_new_one_is_used(
    machines: Machines, tiny_base: Path, data: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    leaving = machines.join()
    values = lora_recipe(
        tiny_base, data, tmp_path / "jobs", steps=STEPS, checkpoint_every=None, max_failures=0
    )
    values["method"]["dropout"] = 0.0
    values["resources"] |= {"workers": [1, 2], "resize_every_s": 2.0, "sharding": "full"}
    job = machines.submit(values)
    run_id = str(until(lambda: job.events("run"))[0]["run_id"])

    def reached(step: int) -> bool:
        assert job.process.poll() is None, "\n".join(job.lines())
        return runs.latest(run_id, uri=mlflow_uri).get("train/loss", (0, 0.0))[0] >= step

    until(lambda: reached(5))
    assert len(machines.cluster.workers()) == 2
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(55) == 1, "the node goes as soon as its worker has left, and is not made to"
    until(lambda: job.events("resumed") and reached(job.events("resumed")[0]["step"] + 1))
    assert len(machines.cluster.workers()) == 1

    machines.join()
    until(lambda: len(job.events("resumed")) == 2 and reached(job.events("resumed")[1]["step"] + 1))
    assert len(machines.cluster.workers()) == 2
    job.kill()

    left = [job.events(name)[0]["step"] for name in ("preempted", "resized")]
    assert [event["step"] for event in job.events("resumed")] == left
    history = runs.history(run_id, "train/loss", uri=mlflow_uri)
    assert [step for step, _ in history] == list(range(1, len(history) + 1))
    expected = undisturbed(values, left[0] + 5)
    assert [loss for _, loss in history[: len(expected)]] == pytest.approx(expected, abs=1e-5)
