"""`python -m seatrial_jobs.train RECIPE.yaml [--force]`: fine-tune a model and register the version."""

from __future__ import annotations

import sys

from seatrial.config.recipe import TrainRecipe
from seatrial_jobs import job


def main() -> None:
    """Run the job; the process ends with its exit code."""
    sys.exit(job.main(TrainRecipe, "seatrial_jobs.train", sys.argv[1:]))


if __name__ == "__main__":
    main()
