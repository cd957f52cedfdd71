"""`python -m seatrial_jobs.plan RECIPE.yaml`: what a job would do, as one JSON line, without starting it.

The time is an estimate: the job's floating-point operations over the speed at which this machine multiplies
matrices of the model's own shapes, plus what a step and a start cost besides. It imports no torch where the
base's `config.json` spells out its sizes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seatrial.config.load import load
from seatrial.config.recipe import PretrainRecipe, Recipe, TrainRecipe
from seatrial.errors import SeatrialError, UserError
from seatrial_jobs.events import complain
from seatrial_jobs.prepare import Prepared, prepare, read_config

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
    batch_tokens: int
    """Places for tokens in one optimizer step."""
    workers: int
    device: str
    parameters: int
    """Weights of the model, trained or not."""
    estimated_s: float | None
    """Seconds from submission to version; ``None`` on GPUs, which this process does not measure."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that its time depends on."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a Hugging Face `config.json`."""
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(
            hidden=hidden,
            feed_forward=int(config.get("intermediate_size") or 4 * hidden),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def block(self) -> int:
        """Weights of the matrices of all decoder blocks."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All weights; norms, which are few, by their formula too."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.block + embeddings + self.hidden * (2 * self.layers + 1)

    def flops_per_token(self, seq_tokens: int, *, trains_base: bool) -> float:
        """Forward and backward (Kaplan et al. 2020, arXiv:2001.08361, 6N), attention scores included.

        With frozen weights the gradients of the weights fall away: 4N.
        """
        matrices = self.block + self.vocabulary * self.hidden
        scores = 2 * self.layers * self.heads * self.head_dim * seq_tokens
        return (6 if trains_base else 4) * matrices + 6 * scores


def plan(recipe: TrainRecipe | PretrainRecipe, root: Path | None = None) -> Plan:
    """Read and pack the recipe's data, and estimate its time on this machine.

    Raises:
        UserError: data or base are missing, empty or do not fit together.
    """
    prepared = prepare(recipe, root or Path.cwd())
    shape = _shape(recipe, prepared)
    device = _device(recipe)
    return Plan(
        rows_read=prepared.split.rows_read,
        rows_kept=prepared.split.rows_kept,
        heldout=len(prepared.split.heldout),
        tokens=prepared.train.tokens,
        cut_documents=prepared.cut.documents,
        cut_tokens=prepared.cut.tokens,
        cut_responses=prepared.cut.responses,
        steps=prepared.steps,
        batch_tokens=recipe.run.batch_rows * recipe.run.seq_tokens,
        workers=recipe.resources.workers,
        device=device,
        parameters=shape.parameters if shape else 0,
        estimated_s=_estimate_s(recipe, prepared, shape) if shape and device == "cpu" else None,
    )


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


def _estimate_s(recipe: TrainRecipe | PretrainRecipe, prepared: Prepared, shape: Shape) -> float:
    run = recipe.run
    trains_base = isinstance(recipe, PretrainRecipe) or recipe.method.type != "lora"
    per_token = shape.flops_per_token(run.seq_tokens, trains_base=trains_base)
    tokens = prepared.steps * run.batch_rows * run.seq_tokens
    measured = _measurements(recipe, prepared) * run.seq_tokens
    flops = per_token * tokens + per_token / 3 * measured
    speed = matmul_flops_per_s(shape, min(run.seq_tokens * 4, 2048))
    return round(START_S + OTHER_THAN_MATMUL * flops / speed, 1)


def _measurements(recipe: Recipe, prepared: Prepared) -> int:
    """Held-out rows that are looked at during the run."""
    if prepared.heldout is None:
        return 0
    every = recipe.run.evaluate_every
    times = 1 + ((prepared.steps - 1) // every if every else 0)
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


def kind_of(path: Path) -> type[TrainRecipe] | type[PretrainRecipe]:
    """Which of the two recipes a file is, by the field that only pretraining has."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return TrainRecipe  # whose loading says what is wrong
    return PretrainRecipe if isinstance(values, dict) and "register_as" in values else TrainRecipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan as one JSON line; 2 when the recipe or its data are wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        if len(given) != 1:
            raise UserError(f"arguments: {' '.join(given) or 'none'}: give one recipe file")
        path = Path(given[0])
        print(json.dumps(asdict(plan(load(path, kind_of(path))))))  # type: ignore[arg-type]
    except SeatrialError as error:
        complain(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
