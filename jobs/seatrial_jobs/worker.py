"""What a Ray Train worker does: build, restore, train, evaluate; the first one also records and exports."""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from seatrial.config.method import FullMethod
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial.errors import UserError
from seatrial.registry import runs
from seatrial.registry.manifest import BaseRef
from seatrial_jobs import checkpoint, ledger, methods
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.data.pack import Packed
from seatrial_jobs.evaluate import Question, Scores, answer, failed_gates, heldout_loss, score
from seatrial_jobs.export.version import write_version
from seatrial_jobs.loop import Schedule, Step, autocast_for, optimizer_for, train
from seatrial_jobs.prepare import load_tokenizer, write_files
from seatrial_jobs.recorder import Recorder, point
from seatrial_jobs.storage import Storage

DRAIN_TIMEOUT_S = 600.0
HAND_OVER_S = 1.0
"""Seconds between two readings of the losses, which on a GPU wait for it."""


@dataclass(frozen=True)
class Spec:
    """A job as its workers see it."""

    recipe: TrainRecipe | PretrainRecipe
    steps: int
    data: Any
    """Object reference to (train, heldout): :class:`Packed` and :class:`Packed` or None."""
    questions: list[Question]
    base_path: str | None
    base: BaseRef | None
    tokenizer_files: dict[str, str] | None
    storage: Storage
    """The job's own place."""
    driver: str
    run_id: str
    mlflow_uri: str
    data_digest: str
    code_digest: str

    @property
    def method_name(self) -> str:
        """What the manifest says made the weights."""
        return self.recipe.method.type if isinstance(self.recipe, TrainRecipe) else "pretrain"


@dataclass
class Outcome:
    """What the first worker returns to the driver."""

    failed: str | None = None
    """Why training stopped early, when trying again would not help."""
    scores: Scores | None = None
    reasons: list[str] = field(default_factory=list)
    """Gates that did not pass."""
    manifest: str | None = None
    """JSON of the manifest of the version that was uploaded."""
    samples: list[dict[str, str]] = field(default_factory=list)


class HopelessError(Exception):
    """Training cannot go on, on any worker, however often it is tried."""


def work(spec: Spec) -> dict[str, Any]:
    """Run the job on this worker; every worker returns an outcome, the first one's counts."""
    share = _share(spec)
    if share.rank == 0:
        ledger.require_owner(spec.storage, spec.driver)
    try:
        outcome = _work(spec, share)
    except HopelessError as reason:
        outcome = Outcome(failed=str(reason))
    return asdict(outcome)


def _work(spec: Spec, share: Share) -> Outcome:
    run = spec.recipe.run
    train_rows, heldout = ray.get(spec.data)
    method = methods.build(
        spec.recipe.method if isinstance(spec.recipe, TrainRecipe) else FullMethod(type="full")
    )
    model = _model(spec, method, share)
    optimizer = optimizer_for(model, run)
    _seed(run.seed + 1 + share.rank)
    schedule = Schedule.of(run, spec.steps)
    autocast = autocast_for(run, share.device)
    recorder = _recorder(spec) if share.rank == 0 else None
    watch = Watch(spec, share, model, optimizer, schedule, heldout, autocast, recorder)
    start = watch.restore()
    batches = Batches(train_rows, run.batch_rows, run.accumulate, run.seed, share)
    watch.begin(batches)
    train(
        model,
        optimizer,
        batches,
        schedule,
        clip_norm=run.clip_norm,
        autocast=autocast,
        start=start,
        after_step=watch,
    )
    outcome = _evaluate(spec, share, model, watch)
    if recorder is not None:
        if not recorder.close(DRAIN_TIMEOUT_S):
            raise RuntimeError(
                f"MLflow at {spec.mlflow_uri} did not take the measurements: {recorder.problem}"
            )
        if not outcome.reasons:
            outcome.manifest = _export(spec, checkpoint.plain(model), method)
    return outcome


def _share(spec: Spec) -> Share:
    """This worker's place, its device, and how many threads it computes with."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        threads = spec.recipe.resources.threads_per_worker or cores // context.get_local_world_size()
        torch.set_num_threads(max(threads, 1))
    return Share(context.get_world_rank(), context.get_world_size(), device)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _model(spec: Spec, method: methods.Method, share: Share) -> nn.Module:
    """The module to train, on its device, wrapped for several workers; equal on all of them."""
    _seed(spec.recipe.run.seed)
    if isinstance(spec.recipe, PretrainRecipe):
        base = _from_nothing(spec)
    else:
        base = _from_base(spec, method, share)
    prepared: nn.Module = ray.train.torch.prepare_model(
        method.prepare(base), parallel_strategy_kwargs={"forward_sync_buffers": False}
    )
    return prepared


def _from_nothing(spec: Spec) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    assert isinstance(spec.recipe, PretrainRecipe)  # noqa: S101
    shape = spec.recipe.architecture
    tokenizer = _tokenizer(spec)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=spec.recipe.tokenizer.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.max_positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _from_base(spec: Spec, method: methods.Method, share: Share) -> Any:
    from transformers import AutoModelForCausalLM

    assert isinstance(spec.recipe, TrainRecipe)  # noqa: S101
    dtype = spec.recipe.model.dtype
    if dtype == "auto":
        # Small updates vanish in bfloat16's 8 bits of mantissa, so only frozen weights are kept in it.
        frozen_on_gpu = share.device.type == "cuda" and not method.trains_base
        dtype = "bfloat16" if frozen_on_gpu else "float32"
    return AutoModelForCausalLM.from_pretrained(
        _base_path(spec), dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )


def _base_path(spec: Spec) -> Path:
    """The base's files on this machine: where the driver has them, or fetched again on another node."""
    assert isinstance(spec.recipe, TrainRecipe) and spec.base_path and spec.base  # noqa: S101, PT018
    path = Path(spec.base_path)
    if path.is_dir():
        return path
    from seatrial_jobs.export import base as bases

    ref, _, revision = spec.base.ref.partition("@")
    found = bases.resolve(ref, revision or None)
    if found.digest != spec.base.digest:
        raise UserError(
            f"model.base: {ref}: not the same files here as on the driver's machine: share the directory"
        )
    return found.path


def _tokenizer(spec: Spec) -> Any:
    if spec.tokenizer_files is None:
        return load_tokenizer(_base_path(spec))
    with tempfile.TemporaryDirectory() as place:
        write_files(spec.tokenizer_files, Path(place))
        return load_tokenizer(Path(place))


def _recorder(spec: Spec) -> Recorder:
    return Recorder(
        partial(runs.log_points, spec.run_id, uri=spec.mlflow_uri),
        lambda: {key: step for key, (step, _) in runs.latest(spec.run_id, uri=spec.mlflow_uri).items()},
    )


class Watch:
    """Sees every step: hands measurements over, evaluates, saves; and restores when the job starts again."""

    def __init__(
        self,
        spec: Spec,
        share: Share,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        heldout: Packed | None,
        autocast: Callable[[], AbstractContextManager[object]],
        recorder: Recorder | None,
    ) -> None:
        self.spec, self.share, self.schedule = spec, share, schedule
        self.model, self.optimizer = model, optimizer
        self.heldout, self.autocast, self.recorder = heldout, autocast, recorder
        self._steps: list[tuple[Step, float]] = []  # with seconds
        self._tokens = 0.0
        self._since = self._handed_over = time.perf_counter()

    def restore(self) -> int:
        """Continue from the newest checkpoint that holds, if there is one; the number of steps done."""
        given = ray.train.get_checkpoint()
        first = given.path.rstrip("/").rpartition("/")[2] if given else None
        with tempfile.TemporaryDirectory() as place:
            folder, passed_over = checkpoint.newest(self.spec.storage, Path(place), first=first)
            if self.share.rank == 0 and passed_over:
                self._tag({"seatrial.passed_over": "; ".join(passed_over)[:5000]})
            if folder is None:
                return 0
            state = checkpoint.load(folder, self.model, self.optimizer)
        if state.schedule != vars(self.schedule):
            raise HopelessError(
                f"checkpoint of step {state.step} has another schedule: start again with --force"
            )
        if self.share.rank < len(state.generators):
            checkpoint.restore_generators(state.generators[self.share.rank])
        if self.recorder is not None:
            self.recorder.add(runs.Point(**value) for value in state.unlogged)
            checkpoint.tidy(self.spec.storage)
            self._tag({"seatrial.resumed_at": str(state.step)})
        return state.step

    def _tag(self, tags: dict[str, str]) -> None:
        runs.set_tags(self.spec.run_id, tags, uri=self.spec.mlflow_uri)

    def begin(self, batches: Batches) -> None:
        """Start the clock."""
        self._tokens = batches.tokens()
        self._since = time.perf_counter()

    def __call__(self, step: Step) -> None:
        now = time.perf_counter()
        self._steps.append((step, now - self._since))
        run = self.spec.recipe.run
        last = step.number == self.schedule.steps
        evaluate = not last and bool(run.evaluate_every) and step.number % (run.evaluate_every or 1) == 0
        save = last or (bool(run.checkpoint_every) and step.number % (run.checkpoint_every or 1) == 0)
        if evaluate or save or now - self._handed_over > HAND_OVER_S:
            self._hand_over(check=evaluate or save)
        if evaluate:
            self.evaluate(step.number)
        if save:
            self._save(step.number)
        self._since = time.perf_counter()

    def evaluate(self, step: int) -> float | None:
        """The held-out loss, recorded as of ``step``; ``None`` without held-out rows."""
        if self.heldout is None:
            return None
        run = self.spec.recipe.run
        rows_at_once = max(run.batch_rows // (self.share.size * run.accumulate), 1)
        loss = heldout_loss(self.model, self.heldout, rows_at_once, self.share, self.autocast)
        if self.recorder is not None and math.isfinite(loss):
            self.recorder.add([point("eval/loss", loss, step)])
        return loss

    def _hand_over(self, *, check: bool) -> None:
        """Read the losses since last time. ``check`` on every worker at once: do they allow to go on?"""
        steps, self._steps = self._steps, []
        self._handed_over = time.perf_counter()
        if not steps:
            return
        values = torch.stack(
            [torch.stack([step.loss, step.grad_norm]) for step, _ in steps]
        ).tolist()  # (n, 2)
        if self.recorder is not None:
            for (step, seconds), (loss, norm) in zip(steps, values, strict=True):
                self._record(step, loss, norm, seconds)
        self._worst = max([self._worst, *(loss for loss, _ in values)], key=_badness)
        if check and not math.isfinite(self._worst):
            raise HopelessError(f"the loss became {self._worst}: lower run.learning_rate or mend the data")

    _worst = 0.0

    def _record(self, step: Step, loss: float, norm: float, seconds: float) -> None:
        assert self.recorder is not None  # noqa: S101
        measured = {
            "train/loss": loss,
            "train/learning_rate": step.learning_rate,
            "train/grad_norm": norm,
            "train/tokens_per_s": self._tokens / seconds,
        }
        finite = {key: value for key, value in measured.items() if math.isfinite(value)}
        self.recorder.add(point(key, value, step.number) for key, value in finite.items())

    def _save(self, step: int) -> None:
        """Gather what an exact resume needs, and report it to Ray Train, which keeps the newest ones."""
        generators = [checkpoint.generators()]
        if self.share.size > 1:
            gathered: list[Any] = [None] * self.share.size
            dist.all_gather_object(gathered, generators[0])
            generators = gathered
        if self.share.rank != 0:
            ray.train.report({"step": step})
            return
        assert self.recorder is not None  # noqa: S101
        state = checkpoint.State(step, vars(self.schedule), generators, self.recorder.pending())
        with tempfile.TemporaryDirectory() as place:
            checkpoint.save(Path(place), self.model, self.optimizer, state)
            ray.train.report(
                {"step": step},
                checkpoint=ray.train.Checkpoint.from_directory(place),
                checkpoint_dir_name=checkpoint.name_of(step),
                checkpoint_upload_fn=self._upload,
            )

    def _upload(self, local: Any, name: str) -> Any:
        ledger.require_owner(self.spec.storage, self.spec.driver)
        checkpoint.upload(Path(local.path), self.spec.storage, name)
        place = ray.train.get_context().get_storage()
        return ray.train.Checkpoint(f"{place.experiment_fs_path}/{name}", filesystem=place.storage_filesystem)


def _badness(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _evaluate(spec: Spec, share: Share, model: nn.Module, watch: Watch) -> Outcome:
    """Held-out loss and answers, each worker its part; the first one scores them."""
    loss = watch.evaluate(spec.steps)
    tokenizer = _tokenizer(spec)
    gate = spec.recipe.gate
    mine = spec.questions[share.rank :: share.size]
    texts = (
        answer(checkpoint.plain(model), tokenizer, mine, gate.max_new_tokens, share.device) if mine else []
    )
    parts: list[Any] = [texts]
    if share.size > 1:
        parts = [None] * share.size
        dist.all_gather_object(parts, texts)
    if share.rank != 0:
        return Outcome()
    answers = [parts[i % share.size][i // share.size] for i in range(len(spec.questions))]
    exact, rouge = score(answers, [question.reference for question in spec.questions])
    scores = Scores(loss, exact, rouge)
    assert watch.recorder is not None  # noqa: S101
    named = {"eval/exact_match": exact, "eval/rouge_l": rouge}
    watch.recorder.add(point(key, value, spec.steps) for key, value in named.items() if value is not None)
    samples = [
        {"prompt": q.prompt, "reference": q.reference, "answer": a}
        for q, a in zip(spec.questions, answers, strict=True)
    ]
    return Outcome(scores=scores, reasons=failed_gates(gate, scores), samples=samples)


def _export(spec: Spec, model: nn.Module, method: methods.Method) -> str:
    """Write the version's folder, keep it as the run's artifact `model`, and return its manifest."""
    ledger.require_owner(spec.storage, spec.driver)
    with tempfile.TemporaryDirectory() as place:
        manifest = write_version(
            Path(place),
            model,
            method,
            name=spec.method_name,
            tokenizer=_tokenizer(spec),
            base=spec.base,
            data_digest=spec.data_digest,
            code_digest=spec.code_digest,
            run_id=spec.run_id,
        )
        runs.log_folder(spec.run_id, Path(place), "model", uri=spec.mlflow_uri)
    return manifest.model_dump_json()
