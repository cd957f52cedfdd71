"""The two sides of `gpu_train`: our loop, and the Trainer of `transformers`, on the same rows and weights."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.clock import Clock, fresh, peak_bytes
from benchmarks.gpu.shapes import Shape, build
from seatrial.config.run import RunSection
from seatrial_jobs.data.pack import Packed


@dataclass(frozen=True)
class Case:
    """What both sides do."""

    shape: Shape
    run: RunSection
    attention: str
    tf32: bool
    warmup: int
    """First steps that are not in the figures."""
    peer_compile: bool
    device: Any

    @property
    def steps(self) -> int:
        """Steps of a side, the first ones included."""
        return self.run.steps or 0

    def model(self) -> Any:
        """The model, the same weights each time."""
        return build(self.shape, seq_tokens=self.run.seq_tokens, attention=self.attention, device=self.device)


@dataclass(frozen=True)
class Side:
    """What a side took."""

    seconds: float
    """Of all measured steps."""
    step_ms: float
    """Median."""
    first_step_s: float
    """Compilation is in it."""
    loss: float
    """Mean over all steps, in nats per token."""
    peak_bytes: int | None


def ours(case: Case, packed: Packed) -> tuple[Side, float, bool]:
    """Our loop; besides, the tokens of a step, and whether documents had to have rows of their own."""
    from seatrial_jobs.batches import Batches, Share
    from seatrial_jobs.loop import (
        Schedule,
        Step,
        autocast_for,
        loss_for,
        optimizer_for,
        recompute_layers,
        train,
    )
    from seatrial_jobs.workers.probe import keeps_apart

    fresh(case.device)
    run, model = case.run, case.model()
    if run.recompute:
        recompute_layers(model)
    apart = not keeps_apart(model, packed, case.device)
    batches = Batches(packed, run.batch_rows, run.accumulate, run.seed, Share(0, 1, case.device), apart=apart)
    clock, losses = Clock(case.device), []

    def after_step(step: Step) -> None:
        clock.mark()
        losses.append(step.loss)

    clock.mark()
    train(
        model,
        optimizer_for(model, run),
        batches,
        Schedule.of(run, case.steps),
        clip_norm=run.clip_norm,
        autocast=autocast_for(run, case.device),
        loss_of=loss_for(run),
        after_step=after_step,
    )
    side = _side(clock, case, statistics.fmean(float(loss) for loss in losses))
    return side, batches.tokens(), apart


def trainer(case: Case, packed: Packed) -> Side:
    """The Trainer with the same optimizer, schedule, precision and order of rows, and nothing to report."""
    from transformers import Trainer, TrainerCallback

    fresh(case.device)
    clock = Clock(case.device)

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.mark()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    with tempfile.TemporaryDirectory() as place:
        peer = Trainer(
            model=case.model(),
            args=_arguments(case, place),
            train_dataset=_dataset(case, packed),
            callbacks=[Marks()],
        )
        loss = peer.train().training_loss
    return _side(clock, case, loss)


def _side(clock: Clock, case: Case, loss: float) -> Side:
    seconds = clock.seconds()
    measured = seconds[case.warmup :]
    return Side(sum(measured), 1000 * statistics.median(measured), seconds[0], loss, peak_bytes(case.device))


def _arguments(case: Case, place: str) -> Any:
    from transformers import TrainingArguments

    from seatrial_jobs.loop import has_bfloat16

    run = case.run
    bfloat16 = run.precision == "bfloat16" or (run.precision == "auto" and has_bfloat16(case.device))
    return TrainingArguments(
        output_dir=place,
        max_steps=case.steps,
        per_device_train_batch_size=run.batch_rows // run.accumulate,
        gradient_accumulation_steps=run.accumulate,
        learning_rate=run.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=run.weight_decay,
        max_grad_norm=run.clip_norm,
        adam_beta1=0.9,
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        bf16=bfloat16,
        tf32=case.tf32 if case.device.type == "cuda" else None,
        gradient_checkpointing=run.recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False} if run.recompute else None,
        torch_compile=case.peer_compile,
        use_cpu=case.device.type == "cpu",
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=run.seed,
    )


def _dataset(case: Case, packed: Packed) -> list[dict[str, Any]]:
    """The rows in the order in which our loop visits them; positions only where documents share a row."""
    import torch

    from seatrial_jobs.data.pack import order

    run = case.run
    shared = bool((packed.position_ids[:, 1:] == 0).any())
    names = ["input_ids", "labels", *(["position_ids"] if shared else [])]
    visited = [
        row for step in range(case.steps) for row in order(packed.rows, run.batch_rows, run.seed, step)
    ]
    return [{name: torch.from_numpy(getattr(packed, name)[row]).long() for name in names} for row in visited]
