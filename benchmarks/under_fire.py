"""Promotions, rollbacks and the death of each part under load, with everything real.

    python -m benchmarks.under_fire [--swaps 100] [--only swaps,replica_killed,...]

Two engine replicas behind HAProxy answer at least 20 requests a second, every second one streamed, while
versions are promoted by alias, every tenth a corrupt one, and while parts are killed. Every answer is read
to its end and must be, token for token, what transformers and PEFT give for the version that its header
names. Prints one JSON object a scenario; exit code 1 when an answer was wrong, or a request failed that
nobody had to lose.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.serving import scenarios
from tests.serving.fire import Fire, on_fire
from tests.serving.load import Load

Scenario = Callable[[Fire], tuple[Load, dict[str, Any]]]


def main() -> None:
    """Run the scenarios one after the other on one service."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--only", default="", help="names of scenarios, with commas between")
    options = parser.parse_args()
    all_of_them: dict[str, Scenario] = {
        "swaps": partial(scenarios.swaps, count=options.swaps),
        "broken_challenger": scenarios.broken_challenger,
        "failing_challenger": scenarios.failing_challenger,
        "hanging_challenger": scenarios.hanging_challenger,
        "shadowed": scenarios.shadowed,
        "store_away": scenarios.store_away,
        "controller_killed": scenarios.controller_killed,
        "mlflow_killed": scenarios.mlflow_killed,
        "replica_killed": scenarios.replica_killed,
    }
    wanted = options.only.split(",") if options.only else list(all_of_them)
    is_well = True
    with tempfile.TemporaryDirectory(prefix="seatrial-fire-") as name, on_fire(Path(name)) as fire:
        for each in wanted:
            running, figures = all_of_them[each](fire)
            wrong = len(running.wrong(fire.texts))
            print(
                json.dumps({"benchmark": "under_fire", "scenario": each, **figures, "wrong": wrong}),
                flush=True,
            )
            is_well &= wrong == 0 and (figures["failed"] == 0 or each == "replica_killed")
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
