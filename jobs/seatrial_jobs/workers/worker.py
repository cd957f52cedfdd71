"""What a Ray Train worker does: build, restore, train, evaluate; the first one also records and exports."""

from __future__ import annotations

import os
import random
import socket
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from seatrial.config.addresses import without_passwords
from seatrial.config.method import FullMethod
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial.errors import UserError
from seatrial.registry import runs, versions
from seatrial_jobs import ledger, methods, sharding
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.checkpoints.keeper import PATIENCE_S, Keeper
from seatrial_jobs.checkpoints.writer import patiently
from seatrial_jobs.data.pack import Packed
from seatrial_jobs.evaluate import Scores, answer, failed_gates, score
from seatrial_jobs.export.version import write_version
from seatrial_jobs.loop import (
    Schedule,
    autocast_for,
    has_bfloat16,
    in_halves,
    loss_for,
    optimizer_for,
    recompute_layers,
    train,
)
from seatrial_jobs.prepare import load_tokenizer, write_files
from seatrial_jobs.recorder import Recorder, point
from seatrial_jobs.spec import HopelessError, Spec
from seatrial_jobs.workers.elastic import ROOM
from seatrial_jobs.workers.preemption import Notice
from seatrial_jobs.workers.probe import keeps_apart
from seatrial_jobs.workers.watch import Watch

DRAIN_TIMEOUT_S = 600.0
AWAY_S = 60.0
"""Seconds that a mount may be away before it is taken for one that this machine does not have."""


@dataclass
class Outcome:
    """What the first worker returns to the driver."""

    failed: str | None = None
    """Why training stopped early, when trying again would not help."""
    user_error: str | None = None
    """What the person who wrote the recipe has to mend, when it showed only here."""
    scores: Scores | None = None
    reasons: list[str] = field(default_factory=list)
    """Gates that did not pass."""
    manifest: str | None = None
    """JSON of the manifest of the version that was uploaded."""
    samples: list[dict[str, str]] = field(default_factory=list)


def work(spec: Spec) -> dict[str, Any]:
    """Run the job on this worker; every worker returns an outcome, the first one's counts.

    An error that would come again is returned rather than raised, since Ray Train starts raised ones again.
    """
    share, recorder = _share(spec), None
    try:
        _require_place(spec, share)
        recorder = _recorder(spec) if share.rank == 0 else None
        outcome = _work(spec, share, recorder)
    except (HopelessError, UserError) as reason:
        if recorder is not None:
            recorder.close(DRAIN_TIMEOUT_S)  # the last measurements tell how it came to this
        if isinstance(reason, UserError):
            outcome = Outcome(user_error=str(reason))
        else:
            outcome = Outcome(failed=str(reason))
    finally:
        ROOM.ready.set()  # a change of the number of workers has nothing to wait for here
    return asdict(outcome)


def _work(spec: Spec, share: Share, recorder: Recorder | None) -> Outcome:
    run = spec.recipe.run
    train_rows, heldout = ray.get(spec.data)
    method = methods.build(
        spec.recipe.method if isinstance(spec.recipe, TrainRecipe) else FullMethod(type="full")
    )
    model = _model(spec, method, share)
    apart = _apart(spec, share, model, train_rows)
    optimizer = optimizer_for(model, run)
    _seed(run.seed + 1 + share.rank)
    schedule = Schedule.of(run, spec.steps)
    autocast = autocast_for(run, share.device)
    parts = (spec, share, model, optimizer, schedule, recorder)
    keeper = Keeper(*parts, tokens_digest=train_rows.digest)
    notice = Notice(share, ray.train.get_preemption_info)
    watch = Watch(keeper, heldout, autocast, apart=apart, notice=notice)
    batches = Batches(
        *(train_rows, run.batch_rows, run.accumulate, run.seed, share),
        fewest=spec.recipe.resources.min_workers,
        apart=apart,
    )
    guard = watch.watch_for_spikes(run.spikes, batches) if run.spikes else None
    start = watch.restore()
    watch.begin(batches)
    train(
        model,
        optimizer,
        batches,
        schedule,
        clip_norm=run.clip_norm,
        autocast=autocast,
        guard=guard,
        loss_of=loss_for(run),
        start=start,
        after_step=watch,
    )
    outcome = _evaluate(spec, share, model, watch)
    exports = share.exchange(spec.export and not outcome.reasons)[0]  # the first one has scored
    if exports and sharding.is_sharded(model):
        sharding.gather(model, share, trained_only=method.kind == "adapter")
    if recorder is not None:
        if not recorder.close(DRAIN_TIMEOUT_S):
            said = f"MLflow at {spec.mlflow_uri} did not take the measurements: {recorder.problem}"
            raise RuntimeError(without_passwords(said))
        if exports:
            outcome.manifest = _export(spec, checkpoint.plain(model), method)
    return outcome


def _require_place(spec: Spec, share: Share) -> None:
    """Every worker looks whether the job is still this driver's.

    Raises:
        UserError: on every worker, when the machine of any does not have the job's place.
    """
    end, problem = time.monotonic() + AWAY_S, None

    def look() -> None:
        nonlocal problem
        try:
            ledger.require_owner(spec.storage, spec.driver)
        except FileNotFoundError:
            if time.monotonic() < end:
                raise
            problem = f"run.storage: {spec.storage.uri}: not there on {socket.gethostname()}: share it"

    patiently(look, PATIENCE_S)
    _raise_any(share.exchange(problem))


def _raise_any(problems: list[str | None]) -> None:
    """Raise a problem that any worker has, on all of them, since none can go on without the others."""
    for problem in problems:
        if problem is not None:
            raise UserError(problem)


def _share(spec: Spec) -> Share:
    """This worker's place, its device, and how many threads it computes with."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        threads = spec.recipe.resources.threads_per_worker or cores // context.get_local_world_size()
        torch.set_num_threads(max(threads, 1))
    else:
        torch.cuda.set_device(device)
    return Share(context.get_world_rank(), context.get_world_size(), device)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _model(spec: Spec, method: methods.Method, share: Share) -> nn.Module:
    """The module to train, on its device, wrapped for several workers; equal on all of them.

    Raises:
        UserError: on every worker when there is one on any, since none can go on without the others.
    """
    _seed(spec.recipe.run.seed)
    ready, problem = None, None
    try:
        if isinstance(spec.recipe, PretrainRecipe):
            ready = method.prepare(_from_nothing(spec))
        else:
            ready = method.prepare(_from_base(spec, method, share))
        if spec.recipe.run.recompute:
            recompute_layers(ready)
    except UserError as error:
        problem = str(error)
    _raise_any(share.exchange(problem))
    assert ready is not None  # noqa: S101
    halves = in_halves(spec.recipe.run, share.device)
    return sharding.spread(ready, share, spec.recipe.resources.sharding, halves=halves)


def _apart(spec: Spec, share: Share, model: nn.Module, rows: Packed) -> bool:
    """Whether documents need rows of their own in this model; noted on the run, since it costs speed."""
    if keeps_apart(checkpoint.plain(model), rows, share.device):
        return False
    if share.rank == 0:
        tags = {"seatrial.packing": "off: in this model, documents of one row would see each other"}
        runs.set_tags(spec.run_id, tags, uri=spec.mlflow_uri)
    return True


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
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    assert isinstance(spec.recipe, TrainRecipe)  # noqa: S101
    dtype = spec.recipe.model.dtype
    if dtype == "auto":
        # Small updates vanish in bfloat16's 8 bits of mantissa, so only frozen weights are kept in it.
        frozen = not method.trains_base and has_bfloat16(share.device)
        dtype = "bfloat16" if frozen else "float32"
    path = _base_path(spec)
    if ray.train.get_context().get_local_rank() == 0:
        _require_same_base(spec, path)
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base: {spec.recipe.model.base}: cannot be loaded ({reason}): give a decoder that "
            "transformers knows, or mend its files"
        ) from error


def _base_path(spec: Spec) -> Path:
    """The base's files on this machine: where the driver has them, or fetched again on another node."""
    assert spec.base_path and spec.base  # noqa: S101, PT018
    path = Path(spec.base_path)
    if path.is_dir():
        return path
    from seatrial_jobs.export import base as bases

    name, revision = spec.base.ref, None
    if not name.startswith(("models:/", "/")):
        name, _, revision = name.partition("@")
    return bases.resolve(name, revision or None, uri=spec.mlflow_uri).path


def _require_same_base(spec: Spec, path: Path) -> None:
    """A directory of one name on two machines can hold two models.

    Raises:
        UserError: the files in ``path`` are not those that the driver saw.
    """
    assert spec.base  # noqa: S101
    if path.name == f"sha256-{spec.base.digest}":  # a registered version, verified when it was fetched
        return
    if versions.folder_digest(path) != spec.base.digest:
        raise UserError(
            f"model.base: {spec.base.ref}: not the same files here as on the driver's machine: "
            "share the directory"
        )


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


def _evaluate(spec: Spec, share: Share, model: nn.Module, watch: Watch) -> Outcome:
    """Held-out loss and answers, each worker its part; the first one scores them."""
    loss = watch.evaluate(spec.steps)
    tokenizer = _tokenizer(spec)
    gate = spec.recipe.gate
    mine = spec.questions[share.rank :: share.size]
    if spec.questions and sharding.is_sharded(model):
        mine = sharding.filled(mine, spec.questions[0], share)
    texts = (
        answer(checkpoint.plain(model), tokenizer, mine, gate.max_new_tokens, share.device) if mine else []
    )
    parts = share.exchange(texts)
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
    patiently(lambda: ledger.require_owner(spec.storage, spec.driver), PATIENCE_S)
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
