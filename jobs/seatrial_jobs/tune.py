"""`python -m seatrial_jobs.tune RECIPE.yaml [--force]`: search for values, register the best result."""

from __future__ import annotations

import sys

from seatrial.config.tune import TuneRecipe
from seatrial_jobs import job


def main() -> None:
    """Run the search; the process ends with its exit code."""
    from seatrial_jobs.search.drive import carry_out

    sys.exit(job.main(TuneRecipe, "seatrial_jobs.tune", sys.argv[1:], carry_out))


if __name__ == "__main__":
    main()
