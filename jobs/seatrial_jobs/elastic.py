"""Before the number of an elastic job's workers changes, those that there are keep a checkpoint.

Ray Train ends the workers without a word when there is room for more. So its controller is made to ask the
first worker, and to wait until all have kept what there is. The only module that touches Ray Train's own
callbacks, which no public interface has (ray 2.60).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

WAIT_S = 60.0
"""Seconds that the change waits for the checkpoint; the controller does nothing else meanwhile."""
LOOK_EVERY_S = 0.2

logger = logging.getLogger(__name__)


class Room:
    """In each worker: whether the controller wants to change the number of workers, and whether it may."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.ready = threading.Event()


ROOM = Room()


class KeepFirst(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """In Ray Train's controller: has the first worker told of a change, and waits until it is ready."""

    def __init__(self) -> None:
        self._workers: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._workers = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._workers = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, ResizingState) or self._workers is None:
            return
        end = time.monotonic() + WAIT_S
        try:
            while not self._workers.execute_single(0, tell) and time.monotonic() < end:
                time.sleep(LOOK_EVERY_S)
        except RayError as error:  # it goes on from an earlier checkpoint
            logger.warning("workers that change in number kept no checkpoint: %s", error)


def tell() -> bool:
    """In the first worker: a change is wanted. Whether it may happen now."""
    ROOM.wanted.set()
    return ROOM.ready.is_set()
