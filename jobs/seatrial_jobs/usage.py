"""What a job has used of the cluster, written on its run by the job itself where no queue does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from seatrial.config.addresses import Addresses
from seatrial.config.jobs import read_jobs_config
from seatrial.errors import SeatrialError
from seatrial.submission import accounting
from seatrial_jobs.events import complain

QUEUE_MARK = "seatrial.team"
"""In the metadata of every job that the queue has started."""


@dataclass
class Usage:
    """GPUs that a job holds from its driver's start to its end, as the queue counts them."""

    clock: Callable[[], float] = time.monotonic
    gpus: float = 0.0
    """Known once the cluster is."""
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def gpu_hours(self) -> float:
        """So far, of this driver alone."""
        return self.gpus * (self.clock() - self.began) / 3600

    def write(self, run_id: str, metadata: Mapping[str, str], uri: str) -> None:
        """Add it to what earlier drivers have left on the run, with its cost where `jobs.yaml` has a price.

        Jobs of the queue are left alone: it counts every attempt, those that were killed too.
        """
        if QUEUE_MARK in metadata:
            return
        try:
            config = read_jobs_config(Addresses.resolve().home)
            accounting.add(run_id, self.gpu_hours, config, uri=uri)
        except (SeatrialError, ValueError) as error:
            complain(f"GPU-hours were not noted on the run: {error}")
