"""What a worker does between steps: it hands measurements over, evaluates and saves."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch
import torch.distributed as dist
from torch import nn

from seatrial.registry import runs
from seatrial_jobs import checkpoint, ledger
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.data.pack import Packed
from seatrial_jobs.evaluate import heldout_loss
from seatrial_jobs.loop import Schedule, Step
from seatrial_jobs.recorder import Recorder, point

if TYPE_CHECKING:
    from seatrial_jobs.worker import Spec

HAND_OVER_S = 1.0
"""Seconds between two readings of the losses, which on a GPU wait for it."""


class HopelessError(Exception):
    """Training cannot go on, on any worker, however often it is tried."""


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
        *,
        tokens_digest: str = "",
        apart: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.spec, self.share, self.schedule = spec, share, schedule
        self.model, self.optimizer = model, optimizer
        self.heldout, self.autocast, self.recorder = heldout, autocast, recorder
        self.tokens_digest, self.apart, self._clock = tokens_digest, apart, clock
        self._steps: list[Step] = []
        self._tokens = 0.0
        self._since = self._handed_over = clock()
        self._worst = 0.0

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
        for what, kept, mine in (
            ("has another schedule", state.schedule, vars(self.schedule)),
            ("was trained on other tokens", state.tokens_digest, self.tokens_digest),
        ):
            if kept != mine:
                raise HopelessError(f"checkpoint of step {state.step} {what}: start again with --force")
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
        self._since = self._clock()

    def __call__(self, step: Step) -> None:
        self._steps.append(step)
        run = self.spec.recipe.run
        last = step.number == self.schedule.steps
        evaluate = not last and bool(run.evaluate_every) and step.number % (run.evaluate_every or 1) == 0
        save = last or (bool(run.checkpoint_every) and step.number % (run.checkpoint_every or 1) == 0)
        if not (evaluate or save or self._clock() - self._handed_over > HAND_OVER_S):
            return
        self._hand_over(check=evaluate or save)
        if evaluate:
            self.evaluate(step.number)
        if save:
            self._save(step.number)
        self._since = self._handed_over = self._clock()

    def evaluate(self, step: int) -> float | None:
        """The held-out loss, recorded as of ``step``; ``None`` without held-out rows."""
        if self.heldout is None:
            return None
        run = self.spec.recipe.run
        rows_at_once = max(run.batch_rows // (self.share.size * run.accumulate), 1)
        loss = heldout_loss(
            self.model, self.heldout, rows_at_once, self.share, self.autocast, apart=self.apart
        )
        if self.recorder is not None and math.isfinite(loss):
            self.recorder.add([point("eval/loss", loss, step)])
        return loss

    def _hand_over(self, *, check: bool) -> None:
        """Read the losses since last time. ``check`` on every worker at once: do they allow to go on?"""
        steps, self._steps = self._steps, []
        values = torch.stack([torch.stack([step.loss, step.grad_norm]) for step in steps]).tolist()  # (n, 2)
        # The reading waits for the device, so the time belongs to all steps together.
        tokens_per_s = len(steps) * self._tokens / max(self._clock() - self._since, 1e-9)
        if self.recorder is not None:
            for step, (loss, norm) in zip(steps, values, strict=True):
                self._record(
                    step.number,
                    {"train/loss": loss, "train/learning_rate": step.learning_rate, "train/grad_norm": norm},
                )
            self._record(steps[-1].number, {"train/tokens_per_s": tokens_per_s})
        self._worst = max([self._worst, *(loss for loss, _ in values)], key=_badness)
        if check and not math.isfinite(self._worst):
            raise HopelessError(f"the loss became {self._worst}: lower run.learning_rate or mend the data")

    def _record(self, step: int, measured: dict[str, float]) -> None:
        assert self.recorder is not None  # noqa: S101
        self.recorder.add(point(key, value, step) for key, value in measured.items() if math.isfinite(value))

    def _save(self, step: int) -> None:
        """Gather what an exact resume needs, and report it to Ray Train, which keeps the newest ones."""
        if (name := checkpoint.not_finite(self.model)) is not None:
            raise HopelessError(
                f"after step {step} the weights {name} are not finite: lower run.learning_rate"
            )
        generators = [checkpoint.generators()]
        if self.share.size > 1:
            gathered: list[Any] = [None] * self.share.size
            dist.all_gather_object(gathered, generators[0])
            generators = gathered
        if self.share.rank != 0:
            ray.train.report({"step": step})
            return
        assert self.recorder is not None  # noqa: S101
        state = checkpoint.State(
            step, vars(self.schedule), generators, self.recorder.pending(), self.tokens_digest
        )
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
