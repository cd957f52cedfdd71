"""What a worker of a group does in the tests of sharding: trainings, checkpoints, exports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from seatrial.config.method import FullMethod, LoraMethod
from seatrial.config.run import RunSection
from seatrial.errors import UserError
from seatrial_jobs import ledger, methods, sharding
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.checkpoints.keeper import Keeper
from seatrial_jobs.data.chat import IGNORED, Encoded
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.evaluate import Question, answer, heldout_loss
from seatrial_jobs.loop import (
    Schedule,
    Step,
    autocast_for,
    in_halves,
    loss_for,
    optimizer_for,
    recompute_layers,
    train,
)
from seatrial_jobs.sharding import whole
from seatrial_jobs.spec import HopelessError
from seatrial_jobs.storage import Storage
from seatrial_jobs.workers.watch import Watch

STEPS = 6
METHODS = {"full": FullMethod(type="full"), "lora": LoraMethod(type="lora", rank=4)}
SPIKES = {"action": "rollback", "window": 8, "threshold": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"method": "lora"},
    "accumulated": {"accumulate": 2},
    "recomputed": {"recompute": True},
    "recomputed lora": {"recompute": True, "method": "lora"},
    "in chunks": {"loss_chunk_tokens": 64},
    "apart": {"apart": True},
    "compiled": {"compile": True},
}


def packed(count: int = 80) -> Packed:
    """Random documents of 5 to 40 tokens whose second half has a loss."""
    chance = np.random.default_rng(0)
    found = []
    for _ in range(count):
        ids = chance.integers(6, 400, chance.integers(5, 40)).tolist()
        half = len(ids) // 2
        found.append(Encoded(ids, [IGNORED] * half + ids[half:]))
    return pack(found, 64)


class Training:
    """One training on one worker, as the job's own worker puts it together."""

    def __init__(
        self,
        share: Share,
        base: Path,
        how: str,
        place: Path | None = None,
        *,
        method: str = "full",
        dtype: torch.dtype = torch.float32,
        apart: bool = False,
        **run: Any,
    ) -> None:
        settings = {"steps": STEPS, "seq_tokens": 64, "batch_rows": 12, "learning_rate": 0.01, **run}
        self.share, self.run = share, RunSection(**settings)
        self.method = methods.build(METHODS[method])
        torch.manual_seed(0)
        made = self.method.prepare(AutoModelForCausalLM.from_pretrained(base, dtype=dtype))
        if self.run.recompute:
            recompute_layers(made)
        self.model = sharding.spread(made, share, how, halves=in_halves(self.run, share.device))  # type: ignore[arg-type]
        self.optimizer = optimizer_for(self.model, self.run)
        self.schedule = Schedule.of(self.run, self.run.steps or 0)
        self.packed = packed()
        self.batches = Batches(
            self.packed, self.run.batch_rows, self.run.accumulate, self.run.seed, share, apart=apart
        )
        self.steps: list[Step] = []
        self.watch = self._watch(Storage(str(place))) if place else None

    def _watch(self, storage: Storage) -> Watch:
        driver = ledger.read(storage)
        spec: Any = SimpleNamespace(
            recipe=SimpleNamespace(run=self.run),
            storage=storage,
            driver=driver and driver.driver,
            tidies=True,
        )
        keeper = Keeper(spec, self.share, self.model, self.optimizer, self.schedule, None)
        return Watch(keeper, None, nullcontext)

    def go(self, *, until: int | None = None) -> list[float]:
        """The losses of all steps from the last checkpoint on, or until the end of step ``until``."""
        start = self.watch.restore() if self.watch else 0
        if self.watch:
            self.watch.begin(self.batches)
        guard = self.watch.watch_for_spikes(self.run.spikes, self.batches) if self.run.spikes else None
        with suppress(StopIteration):
            train(
                *(self.model, self.optimizer, self.batches, self.schedule),
                clip_norm=self.run.clip_norm,
                autocast=autocast_for(self.run, self.share.device),
                guard=guard,
                loss_of=loss_for(self.run),
                start=start,
                after_step=partial(self._after_step, until),
            )
        return [float(step.loss) for step in self.steps]

    def _after_step(self, until: int | None, step: Step) -> None:
        self.steps.append(step)
        if self.watch is not None:
            self.heldout()  # a look at the whole model leaves no trace in the checkpoint after it
            self.watch(step)
        if step.number == until:
            assert self.watch is None or self.watch.keeper._ended() is None
            raise StopIteration

    def heldout(self) -> float:
        return heldout_loss(self.model, packed(9), 2, self.share, nullcontext, apart=self.batches.apart)

    @property
    def plain(self) -> nn.Module:
        return checkpoint.plain(self.model)


def traces(share: Share, base: Path, how: str, variants: list[str]) -> dict[str, tuple[list[float], ...]]:
    """Losses, gradient norms and held-out losses of some of the variants."""
    found = {}
    for name in variants:
        settings = dict(VARIANTS[name])
        with compiled_by_torch_alone() if settings.get("compile") else nullcontext():
            training = Training(share, base, how, **settings)
            before = training.heldout()
            losses = training.go()
            norms = [float(step.grad_norm) for step in training.steps]
            found[name] = (losses, norms, [before, training.heldout()])
    return found


@contextmanager
def compiled_by_torch_alone() -> Iterator[None]:
    """Traced and differentiated as on a GPU, but run by torch's own kernels: no C++ compiler is needed."""
    whole, graphs = torch.compile, torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.compile = partial(whole, backend="aot_eager")  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = whole
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs


def half_precision(share: Share, base: Path, how: str) -> dict[str, list[float]]:
    """Losses of passes in bfloat16: of weights in float32, and of adapters on frozen weights in bfloat16."""
    frozen = {"method": "lora", "dtype": torch.bfloat16}
    kinds: dict[str, dict[str, Any]] = {
        "full": {},
        "lora": frozen,
        "sharp": {**frozen, "precision": "float32"},
    }
    return {
        name: Training(share, base, how, **{"precision": "bfloat16", **settings}).go()
        for name, settings in kinds.items()
    }


def saved(share: Share, base: Path, place: Path, how: str, method: str, until: int) -> list[float]:
    """Train until a checkpoint after ``until`` steps is in storage."""
    return Training(share, base, how, place, method=method, checkpoint_every=1).go(until=until)


def resumed(share: Share, base: Path, place: Path, how: str, method: str) -> list[float]:
    """Go on from the newest checkpoint until the end."""
    return Training(share, base, how, place, method=method).go()


def fetches(share: Share, base: Path, place: Path) -> int:
    """How often this worker asks storage for a checkpoint's file while all of them restore it."""
    asked: list[str] = []
    fetch = Storage.fetch
    Storage.fetch = lambda self, name, local: asked.append(name) or fetch(self, name, local)  # type: ignore[method-assign]
    Training(share, base, "full", place).go()
    return len(asked)


def held(share: Share, base: Path, how: str, method: str = "full") -> tuple[int, int]:
    """Numbers that this worker keeps: weights, and the optimizer's moments, after a training."""
    training = Training(share, base, how, method=method)
    training.go()
    divided = [type(module).__name__ for module in training.model.modules() if isinstance(module, FSDPModule)]
    layers = ["FSDPLlamaForCausalLM", "FSDPLlamaDecoderLayer", "FSDPLlamaDecoderLayer"]
    assert divided == (layers if how == "full" else [])
    snapshot = checkpoint.look(training.model, training.optimizer)
    moments = [tensor for name, tensor in snapshot.optimizer.items() if not name.endswith("/step")]
    return own_numbers(snapshot.weights.values()), own_numbers(moments)


def own_numbers(tensors: Iterable[torch.Tensor]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def staged(share: Share, base: Path) -> bool:
    """Whether a snapshot's copy is what it was, when the weights have changed since."""
    training = Training(share, base, "full")
    snapshot = checkpoint.look(training.model, training.optimizer)
    before = {name: whole(tensor).clone() for name, tensor in snapshot.weights.items()}
    copied = checkpoint.Staging(share.device).copy(snapshot)
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.zero_()
    same = [torch.equal(whole(copied.weights[name]), tensor) for name, tensor in before.items()]
    return all(same) and any(bool(tensor.any()) for tensor in before.values())


def sick(share: Share, base: Path, place: Path) -> str:
    """What is said of a checkpoint when the last worker's part of one weight has no number in it."""
    training = Training(share, base, "full", place)
    if share.rank == share.size - 1:
        with torch.no_grad():
            dict(training.model.named_parameters())["model.norm.weight"].to_local()[-1] = torch.nan  # type: ignore[operator]
    assert training.watch is not None
    try:
        training.watch.keeper.save(1, wait=True)
    except HopelessError as error:
        return str(error)
    return ""


def killed_between_parts(share: Share, base: Path, place: Path, after: int) -> None:
    """The last worker dies when its part of the checkpoint after ``after`` steps is half in storage."""
    upload: Callable[..., Any] = checkpoint.upload

    def dies(folder: Path, storage: Storage, name: str) -> Any:
        if share.rank == share.size - 1 and checkpoint.step_of(name) == after:
            storage.put(next(folder.iterdir()), f"{name}/half.partial")
            os._exit(9)
        return upload(folder, storage, name)

    checkpoint.upload = dies
    Training(share, base, "full", place, checkpoint_every=1).go()


def spiked(share: Share, base: Path, place: Path, how: str) -> tuple[list[float], list[dict[str, Any]]]:
    """Train on rows of which one step's make no sense, with a guard."""
    settings = {"steps": 14, "learning_rate": 0.001, "batch_rows": 6, "checkpoint_every": 2, "spikes": SPIKES}
    training = Training(share, base, how, place, **settings)
    bad = training.packed.labels.copy()
    bad[training.batches.rows(10)] = 5
    training.batches = Batches(
        Packed(**{**vars(training.packed), "labels": bad}), 6, 1, training.run.seed, share
    )
    losses = training.go()
    assert training.watch is not None
    assert training.watch.guard is not None
    return losses, training.watch.guard.events


def exported(share: Share, base: Path, place: Path, how: str, method: str) -> None:
    """Train to the end, keep the last checkpoint, and write the version's weights to `place/version`."""
    training = Training(share, base, how, place / "job", method=method)
    training.go()
    if sharding.is_sharded(training.model):
        sharding.gather(training.model, share, trained_only=training.method.kind == "adapter")
    if share.rank == 0:
        (place / "version").mkdir()
        training.method.save(training.plain, place / "version", None)


def answers(share: Share, base: Path, how: str, method: str, questions: list[Question]) -> list[str]:
    """This worker's answers after training."""
    training = Training(share, base, how, method=method)
    training.go()
    mine = questions[share.rank :: share.size]
    if sharding.is_sharded(training.model):
        mine = sharding.filled(mine, questions[0], share)
    return answer(training.plain, AutoTokenizer.from_pretrained(base), mine, 8, share.device)


class Wrapper(nn.Module):
    """A method's wrapper with a weight of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.own = inner, nn.Parameter(torch.zeros(1))


def refused(share: Share, base: Path) -> str:
    """What is said of a model that cannot be divided."""
    model = Wrapper(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    try:
        sharding.spread(model, share, "full", halves=False)
    except UserError as error:
        return str(error)
    return ""
