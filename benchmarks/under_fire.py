"""Promotions, rollbacks and the death of each part under load, with everything real.

    python -m benchmarks.under_fire [--swaps 100] [--store postgresql] [--only swaps,replica_killed,...]

Two engine replicas behind HAProxy answer at least 20 requests a second, every second one streamed, while
versions are promoted by alias, every tenth a corrupt one, and while parts are killed. Every answer is read
to its end and must be, token for token, what transformers and PEFT give for the version that its header
names. The store is SQLite; for its own death it is a PostgreSQL that is started for it, and with `--store
postgresql` for everything else as well. Prints one JSON object a scenario; exit code 1 when an answer was
wrong, or a request failed that nobody had to lose.
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
STORES = ("sqlite", "postgresql")
# What only one of the stores can show.
ONLY_ON = {"store_away": "sqlite", "postgres_killed": "postgresql"}


def main() -> None:
    """Run the scenarios one after the other on one service, or on one a store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--store", choices=STORES)
    parser.add_argument("--only", default="", help="names of scenarios, with commas between")
    options = parser.parse_args()
    known = every(options.swaps)
    wanted = options.only.split(",") if options.only else list(known)
    is_well = True
    for store in [options.store] if options.store else STORES:
        names = [name for name in wanted if store == ONLY_ON.get(name, options.store or STORES[0])]
        if names:
            is_well &= run(store, {name: known[name] for name in names})
    sys.exit(0 if is_well else 1)


def every(swaps: int) -> dict[str, Scenario]:
    """All scenarios in their order."""
    return {
        "swaps": partial(scenarios.swaps, count=swaps),
        "broken_challenger": scenarios.broken_challenger,
        "failing_challenger": scenarios.failing_challenger,
        "hanging_challenger": scenarios.hanging_challenger,
        "shadowed": scenarios.shadowed,
        "store_away": scenarios.store_away,
        "postgres_killed": scenarios.postgres_killed,
        "controller_killed": scenarios.controller_killed,
        "mlflow_killed": scenarios.mlflow_killed,
        "replica_killed": scenarios.replica_killed,
    }


def run(store: str, wanted: dict[str, Scenario]) -> bool:
    """Print the scenarios' lines; whether nothing went wrong."""
    is_well = True
    with (
        tempfile.TemporaryDirectory(prefix="seatrial-fire-") as name,
        on_fire(Path(name), is_postgresql=store == "postgresql") as fire,
    ):
        for each, scenario in wanted.items():
            running, figures = scenario(fire)
            wrong = len(running.wrong(fire.texts))
            line = {"benchmark": "under_fire", "store": store, "scenario": each, **figures, "wrong": wrong}
            print(json.dumps(line), flush=True)
            # A stream that has begun cannot move: the killed engine's own are cut, nobody else's.
            failed = figures.get("champions_failed", figures["failed"])
            is_well &= wrong == 0 and (failed == 0 or each == "replica_killed")
    return is_well


if __name__ == "__main__":
    main()
