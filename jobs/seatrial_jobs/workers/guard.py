"""What is done about steps that stand out, before their updates; told in MLflow, kept for a resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from seatrial.config.run import SpikesSection
from seatrial_jobs.spec import HopelessError
from seatrial_jobs.workers.spikes import Detector, Spike

SHOWN_LINES = 20


class Guard:
    """Stands between gradient and update, alike on all workers.

    ``rows`` tells the lines of the training file that a step learns from, ``go_back`` puts weights and
    optimizer back as of the last regular checkpoint and returns its step and this guard's memory at that time
    (``None`` without one), and ``tell`` is given all events so far.
    """

    def __init__(
        self,
        settings: SpikesSection,
        rows: Callable[[int], list[int]],
        go_back: Callable[[], tuple[int, Mapping[str, Any]] | None],
        tell: Callable[[list[dict[str, Any]]], None],
        workers: int,
    ) -> None:
        self.settings, self._rows, self._go_back, self._tell = settings, rows, go_back, tell
        self._workers = workers
        self._detector = Detector(settings)
        self.factor = 1.0
        """What the schedule's rate is multiplied by."""
        self.events: list[dict[str, Any]] = []

    def allows(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Whether the update of the step with index ``step`` may be applied; reading waits for the device.

        Raises:
            HopelessError: on all workers, when the job is to stop.
        """
        values = torch.stack([loss.detach(), grad_norm.detach()])  # (2,)
        if self._workers > 1:
            dist.broadcast(values, 0)  # norms may differ in their last bit; decisions must not
        measured, norm = values.tolist()
        spike = self._detector.judge(measured, norm)
        if spike is None:
            return True
        self._act(spike, self._note(step, spike, measured, norm))
        return False

    def _note(self, step: int, spike: Spike, loss: float, norm: float) -> dict[str, Any]:
        event = {
            "step": step + 1,
            "what": spike.what,
            "loss": _shown(loss),
            "grad_norm": _shown(norm),
            "median": _shown(spike.median),
            "score": _shown(spike.score),
            "action": self.settings.action,
            "back_to": None,
            "rows": self._rows(step),
        }
        self.events.append(event)
        return event

    def _act(self, spike: Spike, event: dict[str, Any]) -> None:
        action = self.settings.action
        if action == "rollback" and (found := self._go_back()) is not None:
            event["back_to"], memory = found
            self._detector.remember(memory["detector"])
        if action == "lower_lr":
            self.factor *= self.settings.lr_factor
        self._tell(self.events)
        if action == "stop" or len(self.events) >= self.settings.max_events:
            raise HopelessError(
                f"step {event['step']}: the {spike.what} is {spike.value:.4g}, "
                f"the median {spike.median:.4g}, in lines {_some(event['rows'])} of data.train: "
                "mend the data, lower run.learning_rate or change run.spikes"
            )

    def memory(self) -> dict[str, Any]:
        """What a resumed job must know, as JSON values."""
        return {"detector": self._detector.memory(), "factor": self.factor, "events": list(self.events)}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from :meth:`memory`."""
        self._detector.remember(memory["detector"])
        self.factor, self.events = memory["factor"], list(memory["events"])


def _some(lines: list[int]) -> str:
    """The lines, or the first of many."""
    more = f" and {len(lines) - SHOWN_LINES} more" if len(lines) > SHOWN_LINES else ""
    return ", ".join(map(str, lines[:SHOWN_LINES])) + more


def _shown(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)
