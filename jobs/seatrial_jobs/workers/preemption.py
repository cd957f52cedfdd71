"""Leaving in good order: all workers learn at one step that they must go, and go when a checkpoint is kept.

They must go when a machine will be taken away, or when an elastic job gets another number of workers.

Ray learns that a machine goes when its node is drained: by a cloud's or the autoscaler's request, or by
SIGTERM to `ray start --block`, which is what Kubernetes sends to a pod. Ray Train's controller then waits
until every worker is gone or the deadline has passed, and starts the workers again elsewhere, which
`run.max_failures` does not count. Leaving as soon as the checkpoint is in storage spares the rest of the
wait, and a node that is drained and idle goes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
import torch.distributed as dist
from ray.exceptions import RayActorError

from seatrial_jobs.batches import Share
from seatrial_jobs.workers.elastic import ROOM, Room

if TYPE_CHECKING:
    from ray.train import PreemptionInfo

ASK_EVERY_S = 1.0
"""Seconds between two questions; each is a barrier over all workers, of some milliseconds."""
CHANGE_S = 120.0
"""Seconds that a worker waits for a change of their number, which ends it."""


class LeftError(Exception):
    """This worker waited for its end in vain."""


@dataclass(frozen=True)
class Call:
    """Why all workers must go."""

    preemption: PreemptionInfo | None
    """None where only their number changes."""

    @property
    def tag(self) -> str:
        """The run's tag that tells of it."""
        return "seatrial.preempted_at" if self.preemption else "seatrial.resized_at"


class Notice:
    """Asks from time to time whether the workers must go; all of them at the same steps.

    ``ask`` is `ray.train.get_preemption_info`, which gives every worker the first one's answer.
    """

    def __init__(
        self,
        share: Share,
        ask: Callable[[], PreemptionInfo | None],
        room: Room = ROOM,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.share, self._ask, self._room, self._clock = share, ask, room, clock
        self._next = 0
        self._last: tuple[int, float] | None = None  # the step of the last question and its time

    def after(self, step: int) -> Call | None:
        """What is known after ``step`` steps; None as well at steps at which nobody asks."""
        if step < self._next:
            return None
        found, now = self._ask(), self._clock()
        apart = 1
        if self._last is not None:
            apart = steps_apart(step - self._last[0], now - self._last[1])
        apart = self._agreed(0 if self._room.wanted.is_set() else apart)
        self._last, self._next = (step, now), step + apart
        return Call(found) if found is not None or apart == 0 else None

    def _agreed(self, apart: int) -> int:
        """The first worker's number of steps: clocks differ, and all must ask together."""
        if self.share.size == 1:
            return apart
        value = torch.tensor([apart], device=self.share.device)
        dist.broadcast(value, 0)
        return int(value)

    def leave(self, call: Call, sleep: Callable[[float], None] = time.sleep) -> NoReturn:
        """End this worker, whose work is kept, so that Ray Train starts all of them again.

        Raises:
            RayActorError: a machine goes. Ray Train takes it for the death of a worker on that machine, which
                it does not count as a failure of ours; a return would be the end of the job.
            LeftError: the number of workers was to change, and did not.
        """
        self._room.ready.set()  # Ray Train may have decided on another number because of the same machine
        if call.preemption is not None:
            nodes = ", ".join(call.preemption.preempted_node_ids)
            raise RayActorError(error_msg=f"left in time: nodes are taken away: {nodes}", preempted=True)
        sleep(CHANGE_S)
        raise LeftError("the number of workers was to change, and did not")


def steps_apart(steps: int, seconds: float) -> int:
    """Steps between two questions, when the last ``steps`` took so many seconds."""
    return max(int(ASK_EVERY_S * steps / max(seconds, 1e-9)), 1)
