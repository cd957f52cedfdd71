"""How long training stands still for a checkpoint: asynchronous ones beside synchronous ones, in one run.

    python -m benchmarks.checkpoints [--rounds 7]

A Llama of 30 million weights, all trained with AdamW, so that a checkpoint has 360 MB, and a worker's keeper.
They take turns: an asynchronous checkpoint, steps of training until it is in storage, and a synchronous one.
Blocked is what the loop waits for at a checkpoint. Once into a directory, once into an S3 server on the same
machine.

Prints one JSON line for each storage.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seatrial.config.recipe import PretrainRecipe
from seatrial_jobs import ledger
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.checkpoints.keeper import Keeper
from seatrial_jobs.data.chat import Encoded
from seatrial_jobs.data.pack import pack
from seatrial_jobs.loop import Schedule, Step, optimizer_for, train
from seatrial_jobs.spec import Spec
from seatrial_jobs.storage import Storage
from tests.jobs.job_processes import S3_ENVIRONMENT, S3Server

VOCABULARY, SEQ_TOKENS = 8192, 64
MOST_STEPS = 2000
KINDS = ("async", "sync")
TARGET = 0.25
RECIPE = {
    "name": "checkpoints",
    "register_as": "checkpoints",
    "data": {"train": "none.jsonl"},
    "tokenizer": {"vocab_size": VOCABULARY},
    "run": {"steps": MOST_STEPS, "seq_tokens": SEQ_TOKENS, "batch_rows": 1, "keep_checkpoints": 1},
}


class Enough(Exception):  # noqa: N818
    """All rounds are done, and one before them."""


class Rounds:
    """Takes checkpoints between steps, in turn, and notes what each cost."""

    def __init__(self, keeper: Keeper, count: int) -> None:
        self.blocked: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.steps: dict[str, list[float]] = {"alone": [], "while writing": []}
        self._keeper, self._count = keeper, count
        self._saved, self._was_writing = 0, False
        self._since = time.perf_counter()

    def __call__(self, step: Step) -> None:
        """Whatever comes next: a checkpoint of either kind, or another step."""
        took = time.perf_counter() - self._since
        self.steps["while writing" if self._was_writing else "alone"].append(took)
        if not self._is_writing():
            self._save(KINDS[self._saved % 2], step.number)
        self._was_writing, self._since = self._is_writing(), time.perf_counter()

    def _is_writing(self) -> bool:
        thread = self._keeper._writer._thread
        return thread is not None and thread.is_alive()

    def _save(self, kind: str, step: int) -> None:
        began = time.perf_counter()
        self._keeper.save(step, wait=kind == "sync")
        self.blocked[kind].append(time.perf_counter() - began)
        self._saved += 1
        if self._saved == 2 * self._count + 2:
            raise Enough


def llama() -> Any:
    """30 million weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": SEQ_TOKENS}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes, **heads))


def measure(storage: Storage, name: str, rounds: int) -> dict[str, Any]:
    """The line of one storage."""
    recipe = PretrainRecipe.model_validate(RECIPE)
    run, share = recipe.run, Share(0, 1, torch.device("cpu"))
    spec = Spec(
        recipe=recipe,
        steps=MOST_STEPS,
        data=None,
        questions=[],
        base_path=None,
        base=None,
        tokenizer_files={},
        storage=storage,
        driver=ledger.take_over(storage, force=False).driver,
        run_id="",
        mlflow_uri="",
        data_digest="",
        code_digest="",
    )
    model = llama()
    optimizer, schedule = optimizer_for(model, run), Schedule.of(run, MOST_STEPS)
    chance = np.random.default_rng(0)
    documents = [chance.integers(6, VOCABULARY, SEQ_TOKENS).tolist() for _ in range(64)]
    batches = Batches(pack([Encoded(ids, ids) for ids in documents], SEQ_TOKENS), 1, 1, 0, share)
    seen = Rounds(Keeper(spec, share, model, optimizer, schedule, None), rounds)
    try:
        train(model, optimizer, batches, schedule, clip_norm=1.0, after_step=seen)
    except Enough:
        return figure(seen, storage, name)
    raise AssertionError("the steps were not enough for all rounds")


def figure(seen: Rounds, storage: Storage, name: str) -> dict[str, Any]:
    """Medians of the rounds; the first one of each kind allocates memory and is left out."""
    ours, peer = (statistics.median(seen.blocked[kind][1:]) for kind in ("async", "sync"))
    (newest,) = checkpoint.complete(storage)
    return {
        "name": f"checkpoint_{name}",
        "ours": round(1000 * ours, 1),
        "peer": round(1000 * peer, 1),
        "ratio": round(ours / peer, 3),
        "unit": "ms",
        "target": TARGET,
        "peer_name": "run.checkpoint: sync",
        "rounds": len(seen.blocked["sync"]) - 1,
        "megabytes": round(size_of(storage, newest.name) / 1e6),
        "step_ms": round(1000 * statistics.median(seen.steps["alone"])),
        "step_while_writing_ms": round(1000 * statistics.median(seen.steps["while writing"])),
    }


def size_of(storage: Storage, name: str) -> int:
    """Bytes of a checkpoint's files."""
    from pyarrow.fs import FileSelector

    filesystem, path = storage.connect()
    return sum(info.size or 0 for info in filesystem.get_file_info(FileSelector(f"{path}/{name}")))


def main() -> None:
    """Print the figures of a directory and of an S3 server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ.update(S3_ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="seatrial-checkpoints-") as place:
        print(json.dumps(measure(Storage.of("job", Path(place)), "directory", options.rounds)), flush=True)
        server = S3Server(Path(place) / "s3")
        try:
            storage = Storage.of(server.uri("job"), Path(place))
            print(json.dumps(measure(storage, "s3", options.rounds)), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
