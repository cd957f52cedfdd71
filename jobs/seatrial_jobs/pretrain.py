"""`python -m seatrial_jobs.pretrain RECIPE.yaml [--force]`: a tokenizer and a small Llama from nothing."""

from __future__ import annotations

import sys

from seatrial.config.recipe import PretrainRecipe
from seatrial_jobs import job


def main() -> None:
    """Run the job; the process ends with its exit code."""
    sys.exit(job.main(PretrainRecipe, "seatrial_jobs.pretrain", sys.argv[1:]))


if __name__ == "__main__":
    main()
