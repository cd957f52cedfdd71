"""`python told_train.py RECIPE STEPS`: the training job, whose workers write down which steps they have done.

Each worker has a file in the folder `STEPS`, named by its process: empty until it has done a step, and from
then on the first and the last one. All else is `python -m seatrial_jobs.train RECIPE`.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from seatrial.config.recipe import TrainRecipe
from seatrial_jobs import job
from seatrial_jobs.workers import trainer

LATE_S = 0.3
"""From a checkpoint's files to its marker, as on a storage far away: long enough to be killed in."""


def work(folder: Path, spec: Any) -> dict[str, Any]:
    """The worker's part, with each step written down as soon as its update is done."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from seatrial_jobs.checkpoints import checkpoint
    from seatrial_jobs.workers import worker

    mark = checkpoint.mark

    def mark_late(*about: Any, **more: Any) -> None:
        time.sleep(LATE_S)
        mark(*about, **more)

    checkpoint.mark = mark_late

    file = os.open(folder / f"{os.getpid()}-{time.time_ns()}", os.O_CREAT | os.O_WRONLY)
    first = 0

    def note(optimizer: Any, *_: object) -> None:
        nonlocal first
        done = int(next(iter(optimizer.state.values()))["step"])
        first = first or done
        os.pwrite(file, b"%08d %08d" % (first, done), 0)

    register_optimizer_step_post_hook(note)
    return worker.work(spec)


if __name__ == "__main__":
    recipe, folder = sys.argv[1:]
    trainer.fit = partial(trainer.fit, work=partial(work, Path(folder)))
    sys.exit(job.main(TrainRecipe, "seatrial_jobs.train", [recipe]))
