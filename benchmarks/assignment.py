"""How long it takes to say which arm a unit is in.

    python -m benchmarks.assignment [--units 50000]

One JSON object a table: microseconds at the median and at p99 on one core, the least of five rounds each,
beside the target of 20. Units look like UUIDs with a prefix, 41 characters. Exit code 1 when a target is
missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from seatrial.experiments.assignment import Arm, Namespace, TrialTable, assign
from seatrial.experiments.reassignment import reweight

TARGET_US = 20.0
ROUNDS = 5
ARMS = (Arm("champion", "1", 0.5), Arm("challenger", "2", 0.25), Arm("challenger-b", "3", 0.25))
PLAIN = TrialTable("svc-1", "0123456789abcdef", 1.0, ARMS)
FULL = TrialTable("svc-1", "0123456789abcdef", 0.5, ARMS, namespace=Namespace("home", 0.0, 0.9), holdout=0.05)
MOVED = reweight(PLAIN, {"champion": 0.2, "challenger": 0.5, "challenger-b": 0.3})


def main() -> None:
    """Time each kind of table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--units", type=int, default=50_000)
    units = [f"user-2f1c9a3e-8b7d-4a55-9e10-{number:012d}" for number in range(parser.parse_args().units)]
    tables = {"three arms": PLAIN, "holdout, namespace, half coverage": FULL, "after other weights": MOVED}
    is_well = True
    for name, table in tables.items():
        rounds = [_round(units, table) for _ in range(ROUNDS)]
        p50, p99 = (min(each[at] for each in rounds) for at in (0, 1))
        is_well &= p99 <= TARGET_US
        found = {"p50_us": round(p50, 2), "p99_us": round(p99, 2), "target_us": TARGET_US}
        print(json.dumps({"benchmark": "assignment", "table": name, **found}), flush=True)
    sys.exit(0 if is_well else 1)


def _round(units: list[str], table: TrialTable) -> tuple[float, float]:
    """Median and p99 of a decision, in µs."""
    took = []
    for unit in units:
        start = time.perf_counter_ns()
        assign(unit, table)
        took.append(time.perf_counter_ns() - start)
    took.sort()
    return took[len(took) // 2] / 1e3, took[len(took) * 99 // 100] / 1e3


if __name__ == "__main__":
    main()
