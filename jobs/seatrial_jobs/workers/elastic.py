"""What Ray Train lacks for elastic jobs: it counts room that is not there, and ends workers without a word.

Its policy counts the whole of every node, less what other trainings asked for. So it waits for room that
Serve replicas hold or that is about to go, again and again, instead of starting with fewer workers; and to
take more of them it ends those that there are, with all that they did since their last checkpoint. Here it
counts what is free, and lets the workers keep a checkpoint first.

The only module that touches the inside of Ray Train's controller (2.60), which has no public interface.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

WAIT_S = 60.0
"""Seconds that a change waits for the checkpoint; the controller does nothing else meanwhile."""
LOOK_EVERY_S = 0.2
RECOUNT_EVERY_S = 0.5
"""Seconds between two counts while there is no room."""

logger = logging.getLogger(__name__)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's, with a policy for elastic jobs that counts what is free."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = FreeRoom(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)


class Room:
    """In each worker: whether the controller wants to change the number of workers, and whether it may."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.ready = threading.Event()


ROOM = Room()
OWN: Counter[str] = Counter()
"""In the controller: the job's workers by node."""


def fitting(
    free: Mapping[str, Mapping[str, float]],
    going: Collection[str],
    own: Mapping[str, int],
    each: Mapping[str, float],
) -> int:
    """Workers that the nodes hold: the job's own, and what is ``free``, without nodes that are ``going``."""

    def fresh(node: Mapping[str, float]) -> int:
        return min(math.floor((node.get(name, 0.0) + 1e-9) / amount) for name, amount in each.items())

    return sum(own.get(name, 0) + fresh(node) for name, node in free.items() if name not in going)


def draining() -> set[str]:
    """Nodes that will be taken away."""
    return set(ray._private.state.state.get_draining_nodes())


class FreeRoom(ElasticScalingPolicy):  # type: ignore[misc]
    """In Ray Train's controller: how many workers there shall be."""

    def make_decision_for_non_running_worker_group(self) -> Any:
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(RECOUNT_EVERY_S)  # the controller asks again at once
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Ray Train's, but no change while a worker's machine goes: that is told, and acted on, as such."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        # Looked at after the count, so that no machine began to go in between.
        return NoopDecision() if OWN.keys() & draining() else decision

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        most: int = super()._count_possible_workers(reserved_resources)
        free = ray._private.state.available_resources_per_node()
        return min(most, fitting(free, draining(), OWN, self.scaling_config._resources_per_worker_not_none))


class KeepFirst(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """In Ray Train's controller: has the first worker told of a change, and waits until it is ready."""

    def __init__(self) -> None:
        self._workers: Any = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        OWN.clear()

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._workers = worker_group
        OWN.update(worker.metadata.node_id for worker in worker_group.get_workers())

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._workers = None
        OWN.clear()

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
