"""What a worker does between steps: it hands measurements over, evaluates and has checkpoints kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import ray.train
import torch

from seatrial.config.run import SpikesSection
from seatrial.registry import runs
from seatrial_jobs.batches import Batches, rows_at_once
from seatrial_jobs.checkpoints.keeper import Keeper
from seatrial_jobs.data.pack import Packed
from seatrial_jobs.evaluate import heldout_loss
from seatrial_jobs.loop import Step
from seatrial_jobs.recorder import point
from seatrial_jobs.spec import HopelessError
from seatrial_jobs.workers.guard import Guard
from seatrial_jobs.workers.preemption import Call, Notice

HAND_OVER_S = 1.0
"""Seconds between two readings of the losses, which on a GPU wait for it."""
LAST_WORDS_S = 5.0
"""Seconds that a worker on its way out waits for MLflow."""


class Watch:
    """Sees every step: hands measurements over, evaluates, saves; and restores when the job starts again.

    ``keeper`` keeps what is trained, and knows where its measurements go.
    """

    def __init__(
        self,
        keeper: Keeper,
        heldout: Packed | None,
        autocast: Callable[[], AbstractContextManager[object]],
        *,
        apart: bool = False,
        notice: Notice | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.keeper, self.heldout, self.autocast = keeper, heldout, autocast
        self.spec, self.share, self.schedule = keeper.spec, keeper.share, keeper.schedule
        self.model, self.recorder = keeper.model, keeper.recorder
        self.apart, self._clock = apart, clock
        self.notice = notice
        self.guard: Guard | None = None
        self._steps: list[Step] = []
        self._tokens = 0.0
        self._since = self._handed_over = clock()
        self._worst = 0.0

    def restore(self) -> int:
        """Continue from the newest checkpoint that holds, if there is one; the number of steps done."""
        state = self.keeper.restore()
        if state is None:
            return 0
        if self.guard is not None and state.guard is not None:
            self.guard.remember(state.guard)
            if self.guard.events:  # the last may not have reached MLflow
                self._tell_spikes(self.guard.events)
        if self._measures(state.step) and state.heldout is None:  # ended between checkpoint and measurement
            self.evaluate(state.step)
        return state.step

    def _measures(self, step: int) -> bool:
        """Whether the held-out loss is due after ``step``; after the last one the worker asks for it."""
        every = self.spec.recipe.run.evaluate_every
        return step != self.schedule.steps and every is not None and step % every == 0

    def _saves(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step``."""
        every = self.spec.recipe.run.checkpoint_every
        return step == self.schedule.steps or (every is not None and step % every == 0)

    def watch_for_spikes(self, settings: SpikesSection, batches: Batches) -> Guard:
        """A guard whose memory is kept in the checkpoints and whose events are told in MLflow."""
        self.guard = Guard(settings, batches.lines, self._go_back, self._tell_spikes, self.share.size)
        return self.guard

    def _go_back(self) -> tuple[int, Mapping[str, Any]] | None:
        state = self.keeper.go_back()
        return None if state is None or state.guard is None else (state.step, state.guard)

    def _tell_spikes(self, events: list[dict[str, Any]]) -> None:
        if self.recorder is None:
            return
        run_id, uri, last = self.spec.run_id, self.spec.mlflow_uri, events[-1]
        table = {key: [event[key] for event in events] for key in last}
        tags = {
            "seatrial.spikes": str(len(events)),
            "seatrial.last_spike": f"step {last['step']}: {last['what']}, {last['action']}",
        }
        self.recorder.note("spikes.json", lambda: runs.log_json(run_id, "spikes.json", table, uri=uri))
        self.recorder.note("seatrial.spikes", lambda: runs.set_tags(run_id, tags, uri=uri))

    def begin(self, batches: Batches) -> None:
        """Start the clock."""
        self._tokens = batches.tokens()
        self._since = self._clock()

    def __call__(self, step: Step) -> None:
        self._steps.append(step)
        last = step.number == self.schedule.steps
        evaluate, save = self._measures(step.number), self._saves(step.number)
        call = None if last or self.notice is None else self.notice.after(step.number)
        if not (evaluate or save or call or self._clock() - self._handed_over > HAND_OVER_S):
            return
        self._hand_over(check=bool(evaluate or save or call))
        if call:
            self._keep_at_once(step.number, call)
        heldout = self.evaluate(step.number) if evaluate else None
        if save and not (call and heldout is None):
            wait = last or call is not None or self.spec.recipe.run.checkpoint == "sync"
            self._save(step.number, call, heldout=heldout, wait=wait)
        if call:
            self._leave(call)
        self._since = self._handed_over = self._clock()

    def _save(self, step: int, call: Call | None, *, heldout: float | None = None, wait: bool) -> None:
        memory = self.guard.memory() if self.guard is not None else None
        self.keeper.save(step, heldout=heldout, guard=memory, left=call and call.tag, wait=wait)

    def _keep_at_once(self, step: int, call: Call) -> None:
        """Have a checkpoint in storage before anything else."""
        self._save(step, call, wait=True)
        if self.recorder is not None:
            run_id, uri, tags = self.spec.run_id, self.spec.mlflow_uri, {call.tag: str(step)}
            self.recorder.note(call.tag, lambda: runs.set_tags(run_id, tags, uri=uri))

    def _leave(self, call: Call) -> NoReturn:
        assert self.notice is not None  # noqa: S101
        if self.recorder is not None:
            self.recorder.close(LAST_WORDS_S)  # what does not arrive is in the checkpoint
        self.notice.leave(call)

    def evaluate(self, step: int) -> float | None:
        """The held-out loss, recorded as of ``step``; ``None`` without held-out rows."""
        if self.heldout is None:
            return None
        run = self.spec.recipe.run
        at_once = rows_at_once(run.batch_rows, run.accumulate, self.share.size)
        loss = heldout_loss(
            *(self.model, self.heldout, at_once, self.share, self.autocast),
            apart=self.apart,
            chunk_tokens=run.loss_chunk_tokens,
        )
        if self.recorder is not None and math.isfinite(loss):
            self.recorder.add([point("eval/loss", loss, step)])
        ray.train.report({"step": step, "eval/loss": loss})  # for Ray Tune, where it listens
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
        applied = [loss for step, (loss, _) in zip(steps, values, strict=True) if step.applied]
        self._worst = max([self._worst, *applied], key=_badness)
        if check and not math.isfinite(self._worst):
            raise HopelessError(f"the loss became {self._worst}: lower run.learning_rate or mend the data")

    def _record(self, step: int, measured: dict[str, float]) -> None:
        assert self.recorder is not None  # noqa: S101
        self.recorder.add(point(key, value, step) for key, value in measured.items() if math.isfinite(value))


def _badness(value: float) -> float:
    return value if math.isfinite(value) else math.inf
