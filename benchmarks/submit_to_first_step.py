"""Seconds from handing a job over to the end of its first optimizer step, beside `torchrun` of the bare loop.

Ours goes through everything: the queue, the controller's dispatcher, Ray Jobs, a driver that opens the MLflow
run, and Ray Train's worker. `plain` leaves the queue out, as `ray job submit` does. The peer is a fresh
`torchrun` process with the same data, base and arithmetic, and nothing else. They take turns. Our first step
is over when its loss has been handed to the recorder, which is a little later than the step itself.

Our time has three parts: until Ray Jobs has taken the job (`waited_s`), until the driver has started, read
the data and opened the MLflow run (`driver_s`), and until the worker has started, loaded the model and made
the step (`worker_s`).

Prints one JSON line for each figure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TIMEOUT_S = 240.0
PARTS = ("mlflow", "ray", "dashboard", "serve", "controller")
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
RECIPE: dict[str, Any] = {
    "name": "first-step",
    "service": "first-step",
    "data": {"train": "pairs.jsonl"},
    "model": {"base": "./base"},
    "method": {"type": "full"},
    # A checkpoint after each step makes the first one known at once.
    "run": {"steps": 2, "seq_tokens": 256, "batch_rows": 8, "checkpoint_every": 1, "learning_rate": 1e-3},
    "resources": {"workers": 1, "device": "cpu"},
    "gate": {"sample_rows": 1, "max_new_tokens": 1},
}


def bare(file: Path) -> None:
    """The peer, in `torchrun`: read, pack, load, one step of the bare loop; prints when that ended."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    from seatrial.submission.recipes import load_recipe
    from seatrial_jobs.batches import Batches, Share
    from seatrial_jobs.loop import Schedule, optimizer_for
    from seatrial_jobs.prepare import prepare

    recipe, _ = load_recipe(file)
    prepared = prepare(recipe, file.parent)
    assert prepared.base is not None
    model = AutoModelForCausalLM.from_pretrained(prepared.base.path, dtype=torch.float32)
    run = recipe.run
    batches = Batches(prepared.train, run.batch_rows, 1, run.seed, Share(0, 1, torch.device("cpu")))
    optimizer, schedule = optimizer_for(model, run), Schedule.of(run, prepared.steps)
    (batch,) = batches.at(0)
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(0)
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    loss = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    (loss / batches.loss_tokens(0)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip_norm)
    optimizer.step()
    print(f"first step {time.time()}", flush=True)


def peer(file: Path) -> float:
    """Seconds of one `torchrun`."""
    began = time.time()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    done = subprocess.run(
        [*command, __file__, f"--bare={file}"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("first step "))
    return float(line.split()[-1]) - began


@dataclass(frozen=True)
class Times:
    """Of one submission, in seconds since it was handed over."""

    taken: float
    """Ray Jobs has it."""
    run: float
    """The MLflow run is open."""
    step: float
    """The first step is over."""

    def parts(self) -> dict[str, float]:
        """What each stretch took."""
        return {
            "waited_s": self.taken,
            "driver_s": self.run - self.taken,
            "worker_s": self.step - self.run,
        }


def ours(folder: Path, *, is_plain: bool) -> Times:
    """One submission."""
    from seatrial.config.addresses import Addresses
    from seatrial.store import Store
    from seatrial.store.job import ENDED
    from seatrial.submission import ask
    from seatrial.submission.recipes import load_recipe
    from seatrial.submission.submit import connect, make_job, submit

    found, file = Addresses.resolve({}, folder), folder / "recipe.yaml"
    recipe, module = load_recipe(file)
    client, now = connect(found), time.time()
    if is_plain:
        plain = make_job(module, file, recipe.name, folder=folder, upload=False, force=True, now=now)
        began = time.time()
        submission_id = submit(client, plain)
        end = began + TIMEOUT_S
        while str(client.get_job_status(submission_id).value) in ("PENDING", "RUNNING") and time.time() < end:
            time.sleep(0.5)
        return times(client, found.mlflow_uri, submission_id, began)
    wanted = ask.of_recipe(
        recipe, module, file, {}, ask.Wishes("bench"), folder=folder, package=None, force=True, now=now
    )
    store = Store(found.store_url)
    began = time.time()
    placed = ask.place(store, wanted, force=True).job
    while (job := store.job(placed.id)) is not None and job.state not in ENDED:
        time.sleep(0.5)
    store.close()
    assert job is not None
    assert job.state == "succeeded", job.cause
    return times(client, found.mlflow_uri, job.ray_id, began)


def times(client: Any, uri: str, submission_id: str, began: float) -> Times:
    """When Ray Jobs took the job, its run was opened and the first loss was recorded."""
    from mlflow import MlflowClient

    from seatrial.registry import runs

    mlflow = MlflowClient(uri)
    experiment = mlflow.get_experiment_by_name(runs.EXPERIMENT)
    wanted = f"tags.`{runs.SUBMISSION_ID}` = '{submission_id}'"
    (run,) = mlflow.search_runs([experiment.experiment_id], wanted)
    first_ms = min(point.timestamp for point in mlflow.get_metric_history(run.info.run_id, "train/loss"))
    moments_ms = (client.get_job_info(submission_id).start_time, run.info.start_time, first_ms)
    return Times(*(moment / 1000 - began for moment in moments_ms))


def write_inputs(folder: Path) -> None:
    """A recipe, data and a base of 100 thousand weights, so that starting is what is measured."""
    from tests.tiny import make_base

    chance = random.Random(0)  # noqa: S311
    pairs = [(chance.choice(WORDS), chance.choice(WORDS)) for _ in range(300)]
    rows = [{"prompt": f"Join {a} and {b}, {n}", "response": f"{a} {b}"} for n, (a, b) in enumerate(pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    make_base(folder / "base", [" ".join(WORDS)] * 50)


def seatrial(folder: Path, *arguments: str) -> None:
    """Run the command line in the folder."""
    foreign = ("SEATRIAL_", "RAY_", "MLFLOW_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    command = [sys.executable, "-m", "seatrial.cli.main", *arguments]
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)


def main(rounds: int) -> None:
    """Print our seconds, the peer's, and the ratio: through the queue, and plain."""
    from seatrial.stack import ports

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder)
        chosen = zip(PARTS, ports.inner(len(PARTS), ports.Ports()), strict=True)
        seatrial(
            folder, "up", "--ray-cpus", "2", *(p for n, port in chosen for p in (f"--{n}-port", str(port)))
        )
        try:
            peers: list[float] = []
            mine: dict[str, list[Times]] = {"submit_to_first_step": [], "submit_to_first_step_plain": []}
            for _ in range(rounds):
                peers.append(peer(folder / "recipe.yaml"))
                for name, each in mine.items():
                    each.append(ours(folder, is_plain=name.endswith("plain")))
        finally:
            seatrial(folder, "down")
    for name, each in mine.items():
        print(json.dumps(figure(name, each, peers)), flush=True)


def figure(name: str, mine: list[Times], peers: list[float]) -> dict[str, Any]:
    """The line of one way to submit: medians over the rounds, of the parts too."""
    ours_s, peer_s = statistics.median(each.step for each in mine), statistics.median(peers)
    parts = {key: round(statistics.median(each.parts()[key] for each in mine), 2) for key in mine[0].parts()}
    return {
        "name": name,
        "ours": round(ours_s, 2),
        "peer": round(peer_s, 2),
        "ratio": round(ours_s / peer_s, 3),
        **parts,
        "unit": "s",
        "peer_name": "torchrun of the bare loop, without MLflow, Ray or checkpoints",
        "rounds": len(mine),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submit_to_first_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="submissions of each kind")
    parser.add_argument("--bare", type=Path, help="be the peer: one step of this recipe")
    given = parser.parse_args()
    if given.bare:
        bare(given.bare)
    else:
        main(given.rounds)
