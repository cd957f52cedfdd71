"""`python -m seatrial_jobs.plan RECIPE.yaml`: what a job would do, as one JSON line, without starting it.

The time is an estimate: on CPUs the job's floating-point operations over the speed at which this machine
multiplies matrices of the model's own shapes, on GPUs over `--gpu-tflops` for each, plus what a step and a
start cost besides. It imports no torch where the base's `config.json` spells out its sizes, and writes
nothing but the cache of bases.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from seatrial.config.recipe import PretrainRecipe, Recipe, TrainRecipe
from seatrial.config.tune import TuneRecipe
from seatrial.errors import SeatrialError
from seatrial.submission.recipes import load_recipe
from seatrial_jobs import ledger
from seatrial_jobs.events import complain
from seatrial_jobs.memory import Memory, checkpoint_bytes, memory_of
from seatrial_jobs.prepare import Prepared, prepare, read_config, steps_of
from seatrial_jobs.search.forecast import Forecast, forecast, most_expensive
from seatrial_jobs.shape import Shape

START_S = 25.0
"""Seconds from submission to the first step and from the last step to the version; measured on 2 cores."""
OTHER_THAN_MATMUL = 1.8
"""A step's time over that of its matrix products: norms, softmax, optimizer, exchange; measured likewise."""
CALIBRATION_S = 0.5


@dataclass(frozen=True)
class Plan:
    """What a job would read, do and take."""

    rows_read: int
    rows_kept: int
    heldout: int
    tokens: int
    """Tokens of the training documents: one epoch."""
    cut_documents: int
    """Conversations that do not fit a row of `run.seq_tokens` and lose tokens."""
    cut_tokens: int
    cut_responses: int
    """Those that lose the end of their response, so that the model does not learn to stop there."""
    steps: int
    """Of the longest trial, where there are several; the figures below are those of the dearest one."""
    batch_tokens: int
    """Places for tokens in one optimizer step."""
    trials: int
    """How often a search trains; 1 for every other job."""
    trials_at_a_time: int
    """Those that must run together."""
    all_steps: int
    """Of all trials, if none is stopped: time and GPU-hours are of these."""
    likely_steps: int
    """Of all trials, if ``assumption`` holds."""
    assumption: str
    """How many trials the scheduler stops; empty where it stops none."""
    workers: str
    """Their number, or `2 to 4`. Time and GPU-hours are those of the smallest number."""
    device: str
    parameters: int
    """Weights of the model, trained or not."""
    estimated_s: float | None
    """Seconds from submission to version, trials one after the other; ``None`` without the model's sizes."""
    gpu_hours: float | None
    """GPUs times hours."""
    gpu_tflops: float | None
    """What a GPU was taken to do; ``None`` on CPUs, which are measured."""
    memory: Memory | None
    """Bytes of one worker: of its GPU, or of its host where it is on CPUs."""
    host_memory: int | None
    """Bytes of its host's memory that a worker on a GPU takes for checkpoints."""
    digests: dict[str, str]
    """SHA-256 of `code`, `config` and `data`: what tells one piece of work from another."""


def plan(
    recipe: TrainRecipe | PretrainRecipe, root: Path | None = None, *, gpu_tflops: float = 125.0
) -> Plan:
    """Read and pack the recipe's data, and estimate its time: on this machine's CPUs, or on GPUs of so many
    sustained TFLOP/s.

    Raises:
        UserError: data or base are missing, empty or do not fit together.
    """
    prepared = prepare(recipe, root or Path.cwd())
    shape = _shape(recipe, prepared)
    device = _device(recipe)
    tflops = gpu_tflops if device == "gpu" else None
    longest = _dearest(recipe, lambda trial: steps_of(trial, prepared.train) * trial.run.batch_rows)
    steps = steps_of(longest, prepared.train)
    search = recipe.search if isinstance(recipe, TuneRecipe) else None
    foreseen = forecast(search, steps) if search else Forecast(steps, steps, "")
    estimated_s = _estimate_s(longest, prepared, foreseen.most / steps, shape, tflops) if shape else None
    gpus = recipe.resources.min_workers if device == "gpu" else 0
    return Plan(
        rows_read=prepared.split.rows_read,
        rows_kept=prepared.split.rows_kept,
        heldout=len(prepared.split.heldout),
        tokens=prepared.train.tokens,
        cut_documents=prepared.cut.documents,
        cut_tokens=prepared.cut.tokens,
        cut_responses=prepared.cut.responses,
        steps=steps,
        batch_tokens=longest.run.batch_rows * longest.run.seq_tokens,
        trials=search.count if search else 1,
        trials_at_a_time=search.least_at_a_time if search else 1,
        all_steps=foreseen.most,
        likely_steps=foreseen.likely,
        assumption=foreseen.assumption,
        workers=recipe.resources.shown_workers,
        device=device,
        parameters=shape.parameters if shape else 0,
        estimated_s=estimated_s,
        gpu_hours=None if estimated_s is None else round(gpus * estimated_s / 3600, 4),
        gpu_tflops=tflops,
        memory=_memory(recipe, shape, on_gpu=device == "gpu") if shape else None,
        host_memory=_host_memory(recipe, shape) if shape and device == "gpu" else None,
        digests=_digests(recipe, prepared),
    )


def _digests(recipe: TrainRecipe | PretrainRecipe, prepared: Prepared) -> dict[str, str]:
    config = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    data = "\n".join((prepared.split.digest, prepared.base_digest, prepared.tokens_digest))
    return {
        "code": ledger.code_digest(),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "data": hashlib.sha256(data.encode()).hexdigest(),
    }


def _shape(recipe: TrainRecipe | PretrainRecipe, prepared: Prepared) -> Shape | None:
    """``None`` for a model whose configuration does not tell its sizes."""
    if isinstance(recipe, PretrainRecipe):
        a = recipe.architecture
        sizes = (a.hidden_size, a.feed_forward, a.layers, a.heads, a.kv_heads, a.head_dim)
        return Shape(*sizes, vocabulary=recipe.tokenizer.vocab_size, tied=True)
    assert prepared.base is not None  # noqa: S101
    try:
        return Shape.of(read_config(prepared.base.path))
    except (KeyError, TypeError):
        return None


def _device(recipe: Recipe) -> str:
    """As asked for; `auto` by the GPUs of this machine, since the cluster is not asked."""
    if recipe.resources.device != "auto":
        return recipe.resources.device
    return "gpu" if Path("/dev/nvidia0").exists() else "cpu"


def _dearest(
    recipe: TrainRecipe | PretrainRecipe, cost: Callable[[TrainRecipe], float]
) -> TrainRecipe | PretrainRecipe:
    return most_expensive(recipe, cost) if isinstance(recipe, TuneRecipe) else recipe


def _memory(recipe: TrainRecipe | PretrainRecipe, shape: Shape, *, on_gpu: bool) -> Memory:
    """Of the largest trial, where there are several."""
    largest = _dearest(recipe, lambda trial: sum(vars(memory_of(trial, shape, on_gpu=on_gpu)).values()))
    return memory_of(largest, shape, on_gpu=on_gpu)


def _host_memory(recipe: TrainRecipe | PretrainRecipe, shape: Shape) -> int:
    """Of the largest trial, where there are several."""
    return checkpoint_bytes(_dearest(recipe, lambda trial: checkpoint_bytes(trial, shape)), shape)


def _estimate_s(
    recipe: TrainRecipe | PretrainRecipe,
    prepared: Prepared,
    trials: float,
    shape: Shape,
    gpu_tflops: float | None,
) -> float:
    run, steps = recipe.run, steps_of(recipe, prepared.train)
    trains_base = isinstance(recipe, PretrainRecipe) or recipe.method.type != "lora"
    per_token = shape.flops_per_token(run.seq_tokens, trains_base=trains_base)
    tokens = steps * run.batch_rows * run.seq_tokens
    measured = _measurements(recipe, prepared, steps) * run.seq_tokens
    flops = trials * (per_token * tokens + per_token / 3 * measured)
    if gpu_tflops is not None:  # sustained: all of a step is in it
        return round(START_S + flops / (gpu_tflops * 1e12 * recipe.resources.min_workers), 1)
    speed = matmul_flops_per_s(shape, min(run.seq_tokens * 4, 2048))
    return round(START_S + OTHER_THAN_MATMUL * flops / speed, 1)


def _measurements(recipe: Recipe, prepared: Prepared, steps: int) -> int:
    """Held-out rows that are looked at during the run."""
    if prepared.heldout is None:
        return 0
    every = recipe.run.evaluate_every
    times = 1 + ((steps - 1) // every if every else 0)
    return times * prepared.heldout.rows


def matmul_flops_per_s(shape: Shape, tokens: int) -> float:
    """Speed of this machine, all cores, on the model's widest layer in float32."""
    left = np.ones((tokens, shape.hidden), np.float32)
    right = np.ones((shape.hidden, shape.feed_forward), np.float32)
    left @ right  # the first call starts the threads
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < CALIBRATION_S:
        left @ right
        done += 1
    return 2.0 * tokens * shape.hidden * shape.feed_forward * done / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan as one JSON line; 2 when the recipe or its data are wrong."""
    parser = argparse.ArgumentParser(prog="python -m seatrial_jobs.plan")
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument("--gpu-tflops", type=float, default=125.0, help="sustained TFLOP/s of one GPU")
    given = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        recipe, _ = load_recipe(given.recipe)
        print(json.dumps(asdict(plan(recipe, gpu_tflops=given.gpu_tflops))))
    except SeatrialError as error:
        complain(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
