"""What our loop costs beside a bare torch loop: same model, same batches, same process, in alternation.

Ours is the production path: inside a Ray Train worker, with every step's metrics recorded in a real MLflow
server. The peer is the shortest loop that does the same arithmetic, with its batches ready as tensors; with
two workers it is torch's DistributedDataParallel over gloo. They take turns, a block of steps each, and the
figure is the median over the blocks' ratios. Measurements go to MLflow in the background, so all of a block's
are waited for at its end, in our time: the peer pays for none of them.

Prints one JSON line for each figure.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from seatrial.config.recipe import PretrainRecipe
from seatrial.registry import runs
from seatrial_jobs import ledger
from seatrial_jobs.data.chat import Encoded
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.prepare import _files_of
from seatrial_jobs.storage import Storage
from seatrial_jobs.tokenizer import train_tokenizer

BLOCK_STEPS = 6
BLOCKS = 16
TARGET = 1.03
CASES = {1: "bare torch loop", 2: "bare torch loop with DDP over gloo"}

RECIPE = {
    "name": "train-overhead",
    "register_as": "train-overhead",
    "data": {"train": "none.jsonl"},
    "tokenizer": {"vocab_size": 2048},
    "run": {"steps": BLOCK_STEPS * BLOCKS, "seq_tokens": 256, "batch_rows": 8, "learning_rate": 1e-3},
}


def rows(vocabulary: int, seq_tokens: int) -> Packed:
    """Random documents of 20 to 120 tokens in 64 rows or so."""
    chance = np.random.default_rng(0)
    documents = [chance.integers(6, vocabulary, chance.integers(20, 120)).tolist() for _ in range(230)]
    return pack([Encoded(ids, list(ids)) for ids in documents], seq_tokens)


def recipe_for(workers: int) -> PretrainRecipe:
    """The recipe of a case; each worker computes with one thread when there are several."""
    return PretrainRecipe.model_validate({**RECIPE, "resources": {"workers": workers}})


def alternate(spec: Any) -> dict[str, list[float]]:
    """In the worker: our loop, whose every block is followed by a block of the bare one; seconds a step."""
    import ray.train

    from seatrial.config.method import FullMethod
    from seatrial_jobs import methods
    from seatrial_jobs.batches import Batches
    from seatrial_jobs.checkpoints.keeper import Keeper
    from seatrial_jobs.loop import Schedule, Step, autocast_for, optimizer_for, train
    from seatrial_jobs.workers import watch, worker
    from seatrial_jobs.workers.preemption import Notice

    run = spec.recipe.run
    share = worker._share(spec)
    packed, _ = ray.get(spec.data)
    model = worker._model(spec, methods.build(FullMethod(type="full")), share)
    bare = Bare(model, Batches(packed, run.batch_rows, 1, run.seed, share), run)
    optimizer = optimizer_for(model, run)
    schedule, autocast = Schedule.of(run, spec.steps), autocast_for(run, share.device)
    recorder = worker._recorder(spec) if share.rank == 0 else None
    notice = Notice(share, ray.train.get_preemption_info)
    keeper = Keeper(spec, share, model, optimizer, schedule, recorder)
    seen = watch.Watch(keeper, None, autocast, notice=notice)
    batches = Batches(packed, run.batch_rows, run.accumulate, run.seed, share)
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    losses: list[tuple[float, float]] = []
    clock = [time.perf_counter()]

    def after_step(step: Step) -> None:
        if step.number < schedule.steps:  # the last one writes a checkpoint, which the peer does not
            seen(step)
        if step.number % BLOCK_STEPS:
            return
        if seen._steps:
            seen._hand_over(check=False)
        if recorder is not None:
            drain(recorder)
        seconds["ours"].append((time.perf_counter() - clock[0]) / BLOCK_STEPS)
        together(share.size)
        began = time.perf_counter()
        loss = bare.block(step.number - BLOCK_STEPS, step.number)
        seconds["peer"].append((time.perf_counter() - began) / BLOCK_STEPS)
        losses.append((float(step.loss), summed(loss, share.size)))
        together(share.size)
        seen.begin(batches)
        clock[0] = time.perf_counter()

    seen.begin(batches)
    train(
        model,
        optimizer,
        batches,
        schedule,
        clip_norm=run.clip_norm,
        autocast=autocast,
        after_step=after_step,
    )
    if recorder is not None:
        recorder.close(60)
    require_same(losses)
    return seconds


def require_same(losses: list[tuple[float, float]]) -> None:
    """Both loops must have learnt the same: (ours, the bare one's) after each block."""
    for ours, peer in losses:
        if abs(ours - peer) > 1e-3:
            raise AssertionError(f"the two loops do not do the same: losses {ours} and {peer}")


def drain(recorder: Any) -> None:
    """Wait until MLflow has everything; the recorder's own pause between two requests is cut short."""
    while recorder.pending():
        with recorder._changed:
            recorder._changed.notify_all()
        time.sleep(0.002)


def together(workers: int) -> None:
    """Let all workers start at once."""
    import torch.distributed as dist

    if workers > 1:
        dist.barrier()


def summed(loss: Any, workers: int) -> float:
    """The loss over all workers; a bare loop has no need of it, so it is not in its time."""
    import torch.distributed as dist

    if workers > 1:
        dist.all_reduce(loss)
    return float(loss)


class Bare:
    """The shortest loop with the same arithmetic, on a copy of the model."""

    def __init__(self, model: Any, batches: Any, run: Any) -> None:
        import copy

        from torch.nn.parallel import DistributedDataParallel

        from seatrial_jobs.checkpoints.checkpoint import plain
        from seatrial_jobs.loop import Schedule, optimizer_for

        self.model, self.run, self.workers = copy.deepcopy(plain(model)), run, batches.share.size
        if self.workers > 1:
            self.model = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.optimizer = optimizer_for(self.model, run)
        self.schedule = Schedule.of(run, run.steps)
        self.ready = [(batches.at(step)[0], batches.loss_tokens(step)) for step in range(run.steps)]

    def block(self, first: int, last: int) -> Any:
        """Run the steps; this worker's part of the last one's loss."""
        import torch
        from torch.nn.functional import cross_entropy

        for step in range(first, last):
            batch, tokens = self.ready[step]
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate(step)
            logits = self.model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
            ).logits
            loss = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum") / tokens
            # Gradients are averaged over workers; the sum is wanted.
            (loss * self.workers).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def serve_mlflow(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A real MLflow server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1"]
    command += [
        f"--backend-store-uri=sqlite:///{home}/mlflow.db",
        f"--artifacts-destination={home}/artifacts",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (home / "mlflow.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if httpx.get(f"{uri}/health").status_code == 200:
                return server, uri
        except httpx.TransportError:
            time.sleep(0.3)
    server.kill()
    raise TimeoutError(f"{uri} did not answer")


def measure(home: Path, uri: str, workers: int) -> dict[str, list[float]]:
    """Run the alternation in the Ray Train workers of a Ray of its own; the first one's seconds."""
    os.environ["RAY_ADDRESS"] = "local"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    from seatrial_jobs.spec import Spec
    from seatrial_jobs.workers import trainer

    recipe, name = recipe_for(workers), f"bench-{workers}"
    place = Storage(str(home / "jobs"))
    record = ledger.take_over(place.below(name), force=False)
    run = runs.open_run(name, attempt=record.attempt, params={}, tags={}, uri=uri)
    trainer.connect(recipe)

    def spec(put: Any) -> Spec:
        return Spec(
            recipe=recipe,
            steps=recipe.run.steps or 0,
            data=put((rows(recipe.tokenizer.vocab_size, recipe.run.seq_tokens), None)),
            questions=[],
            base_path=None,
            base=None,
            tokenizer_files=_files_of(train_tokenizer(["bench"], recipe.tokenizer.vocab_size)),
            storage=place.below(name),
            driver=record.driver,
            run_id=run.run_id,
            mlflow_uri=uri,
            data_digest="",
            code_digest="",
        )

    try:
        found: dict[str, list[float]] = trainer.fit(spec, place, name, work=alternate)
    finally:
        ray.shutdown()
    return found


def main() -> None:
    """Print our time for a step, the peer's, and the ratio, for one worker and for two."""
    with tempfile.TemporaryDirectory() as home:
        server, uri = serve_mlflow(Path(home))
        try:
            for workers, peer in CASES.items():
                print(json.dumps(figure(measure(Path(home), uri, workers), workers, peer)), flush=True)
        finally:
            server.terminate()
            server.wait(30)


def figure(seconds: dict[str, list[float]], workers: int, peer: str) -> dict[str, Any]:
    """The line of one case."""
    pairs = list(zip(seconds["ours"], seconds["peer"], strict=True))[1:]  # the first block warms up
    return {
        "name": "train_step" if workers == 1 else f"train_step_{workers}_workers",
        "ours": round(1000 * statistics.median(ours for ours, _ in pairs), 2),
        "peer": round(1000 * statistics.median(peer for _, peer in pairs), 2),
        "ratio": round(statistics.median(ours / peer for ours, peer in pairs), 4),
        "unit": "ms",
        "target": TARGET,
        "peer_name": peer,
        "blocks": len(pairs),
        "block_steps": BLOCK_STEPS,
    }


if __name__ == "__main__":
    main()
