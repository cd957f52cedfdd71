"""The training loop: what happens between two versions of the weights, and nothing else.

Shapes: b rows in a pass, T tokens in a row, V entries in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from seatrial.config.run import RunSection
from seatrial.errors import UserError
from seatrial_jobs.batches import Batch, Batches
from seatrial_jobs.data.chat import IGNORED
from seatrial_jobs.sharding import whole


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: linear rise, then linear fall to zero."""

    peak: float
    warmup_steps: int
    steps: int

    @classmethod
    def of(cls, run: RunSection, steps: int) -> Schedule:
        """The schedule of a recipe that runs for ``steps`` steps."""
        return cls(run.learning_rate, round(run.warmup_share * steps), steps)

    def rate(self, step: int) -> float:
        """Rate of the step with index ``step``, counted from 0; never zero inside the run."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        return self.peak * (self.steps - step) / max(self.steps - self.warmup_steps, 1)


@dataclass(frozen=True)
class Step:
    """What one optimizer step was. Tensors stay on the device, so that reading them is the reader's cost."""

    number: int
    """Steps done, this one included."""
    loss: torch.Tensor  # () nats per token, over all workers
    grad_norm: torch.Tensor  # () before clipping
    learning_rate: float
    applied: bool = True
    """Whether the weights have changed: not by a step that stood out."""


LossOf = Callable[[nn.Module, Batch], torch.Tensor]
"""Sum of the cross-entropies of a batch's targets, in nats; ()."""


class Guard(Protocol):
    """Looks at each step before its update; the same on all workers."""

    factor: float
    """What the schedule's rate is multiplied by."""

    def allows(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Whether the update may be applied."""


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    schedule: Schedule,
    *,
    clip_norm: float,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    guard: Guard | None = None,
    loss_of: LossOf | None = None,
    start: int = 0,
    after_step: Callable[[Step], None],
) -> None:
    """Run the steps ``start`` to ``schedule.steps``; ``after_step`` sees each and may evaluate or save.

    ``loss_of`` is :func:`token_loss` or a faster equal of it, as :func:`loss_for` gives.

    The loss of a step is the sum over its tokens divided by their number over all workers and passes, so
    that neither changes the result. The model is in training meanwhile, whatever the method and however it
    was loaded: dropout is what the base's configuration and the method say, and off in measurements.
    """
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss_of = loss_of or token_loss
    for step in range(start, schedule.steps):
        rate = schedule.rate(step) * (guard.factor if guard else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        passes = batches.at(step)
        tokens = max(batches.loss_tokens(step), 1)
        step_loss = torch.zeros((), device=batches.share.device)
        for index, batch in enumerate(passes):
            with _exchange(model, when=index == len(passes) - 1):
                with autocast():
                    loss = loss_of(model, batch) / tokens  # ()
                # Data-parallel workers average their gradients; the sum is wanted.
                (loss * batches.share.size).backward()
            step_loss += loss.detach()
        grad_norm = _clip(trained, clip_norm)  # ()
        if batches.share.size > 1:
            dist.all_reduce(step_loss)
        applied = guard is None or guard.allows(step, step_loss, grad_norm)
        if applied:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(Step(step + 1, step_loss, grad_norm, rate, applied))


def token_loss(model: nn.Module, batch: Batch, chunk_tokens: int | None = None) -> torch.Tensor:
    """Sum of the cross-entropies of all targets, in nats; ().

    Positions that restart make `transformers` mask attention to each document's own block, as long as no
    attention mask and no cache is given; `probe.py` asks whether this model does. Documents in rows of their
    own need neither: what pads them comes after them.

    ``chunk_tokens`` bounds how many tokens have float32 logits at a time; they are computed again for the
    gradient, so that only the model's own logits are kept.
    """
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    logits = model(input_ids=batch.input_ids, use_cache=False, **positions).logits.flatten(0, 1)  # (b·T, V)
    targets = batch.targets.flatten()  # (b·T,)
    if chunk_tokens is None:
        return _cross_entropies(logits, targets)
    # Gradients of a split are joined once; those of slices would each be as large as the whole.
    chunks = zip(logits.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    parts = [checkpoint(_cross_entropies, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(parts).sum()


def loss_for(run: RunSection) -> LossOf:
    """:func:`token_loss` as the recipe wants it computed; compiled, its first calls take minutes.

    The function is compiled rather than the model, so weights keep their names and answers their shapes free.
    """

    def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
        return token_loss(model, batch, run.loss_chunk_tokens)

    return torch.compile(loss_of) if run.compile else loss_of


def recompute_layers(model: nn.Module) -> None:
    """Keep no activations inside the layers while training (Chen et al. 2016, arXiv:1604.06174).

    Raises:
        UserError: this model's layers cannot do so.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    except ValueError as error:
        raise UserError(f"run.recompute: true: this model cannot ({error}): leave it out") from error


def _cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Their sum; () from (N, V) and (N,)."""
    return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def optimizer_for(model: nn.Module, run: RunSection) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), with decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": run.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    return torch.optim.AdamW(kept, lr=run.learning_rate, betas=(0.9, 0.95), fused=True)


def autocast_for(run: RunSection, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """The arithmetic of the forward pass, by :func:`in_halves`."""
    return partial(torch.autocast, device.type, torch.bfloat16) if in_halves(run, device) else nullcontext


def in_halves(run: RunSection, device: torch.device) -> bool:
    """Whether a forward pass is in bfloat16: where the recipe asks for it, or where it pays."""
    return run.precision == "bfloat16" or (run.precision == "auto" and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device is a GPU that computes in bfloat16 rather than emulates it."""
    return device.type == "cuda" and bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _clip(trained: Sequence[nn.Parameter], clip_norm: float) -> torch.Tensor:
    """Shorten the gradient to ``clip_norm``; its norm before, over all workers' parts; ()."""
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(trained, clip_norm, norm)
    return norm


def _exchange(model: nn.Module, *, when: bool) -> AbstractContextManager[object]:
    """Gradients travel between workers in the last pass of a step only, where each has the whole model.

    Where weights are divided they travel in every pass: kept for the last one, each worker would hold the
    whole gradient, which dividing is there to avoid.
    """
    if when or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    held: AbstractContextManager[object] = model.no_sync()
    return held
