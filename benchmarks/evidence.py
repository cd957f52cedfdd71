"""What a look at a trial of many units costs: what is new since the last one, not what was ever seen.

    python -m benchmarks.evidence [--units 1000000] [--new 1000] [--store postgresql]

Fills a trial with units of one request and one outcome each, looking now and then, and then times looks with
nothing new and looks with `--new` new outcomes. The peer is a recount in the database, which groups all rows
by unit. Prints one JSON object for SQLite and one for a PostgreSQL that is started for it: seconds, each the
median of several, the ratio to the target of 1 s, and the recount's ratio to the look with news.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from benchmarks.recorder import STORES, opened, stores
from seatrial.config.trial import TrialSection
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.trial import Trial
from seatrial.store import Store, outcome_row

TARGET_S = 1.0
BLOCK = 20_000
LOOKS = 5
ARMS = ("champion", "challenger")
RECOUNT = """
SELECT arm, count(*), sum(value), sum(value * value) FROM (
  SELECT arm, unit, avg(value) AS value FROM (
    SELECT e.arm, e.unit, e.request_id, coalesce(avg(o.value), 0.0) AS value
    FROM exposures e LEFT JOIN outcomes o
      ON o.request_id = e.request_id AND o.service = e.service AND o.metric = 'resolved'
    WHERE e.trial_id = 'bench-1' AND e.error IS NULL GROUP BY e.arm, e.unit, e.request_id
  ) AS requests GROUP BY arm, unit
) AS units GROUP BY arm
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=1000)
    parser.add_argument("--store", choices=STORES, help="one of them; both when not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, url in stores(Path(folder), given.store):
            print(json.dumps(measure(name, url, given.units, given.new)), flush=True)


def measure(name: str, url: str, units: int, new: int) -> dict[str, object]:
    """One line of figures."""
    made = trial()
    with opened(url) as store:
        store.open_trial(made)
        began = time.perf_counter()
        for start in range(0, units, BLOCK):
            fill(store, range(start, min(start + BLOCK, units)))
            store.evidence(made, now=2.0)
        filled_s = time.perf_counter() - began
        idle = [timed(lambda: store.evidence(made, now=2.0)) for _ in range(LOOKS)]
        busy = []
        for look in range(LOOKS):
            told = [
                outcome_row(
                    "bench", f"r{n * (units // new)}", "resolved", 1.0, now=3.0, client_id=f"{look}-{n}"
                )
                for n in range(new)
            ]
            store.add_outcomes(told)
            busy.append(timed(lambda: store.evidence(made, now=3.0)))
        recount = timed(lambda: rows(store))
        assert sum(arm.exposed_units for arm in store.evidence(made, now=4.0).arms) == units
    with_news = statistics.median(busy)
    return {
        "store": name,
        "units": units,
        "filled_units_per_s": round(units / filled_s),
        "look_s": round(statistics.median(idle), 4),
        "look_with_news_s": round(with_news, 4),
        "new_outcomes": new,
        "recount_s": round(recount, 2),
        "ratio_to_target": round(with_news / TARGET_S, 3),
        "recount_to_look": round(recount / with_news, 1),
    }


def trial() -> Trial:
    policy = TrialSection().model_dump(mode="json")
    table = TrialTable("bench-1", "seed", 1.0, tuple(Arm(name, name, 0.5) for name in ARMS))
    return Trial("bench-1", "bench", 1, "open", table, policy, ARMS[0], {ARMS[1]: ARMS[1]}, 0.0, 0.0)


def fill(store: Store, numbers: range) -> None:
    row = {
        "trial_id": "bench-1",
        "service": "bench",
        "sticky": True,
        "fallback": False,
        "status": 200,
        "at": 1.0,
    }
    asked = []
    for number in numbers:
        arm = ARMS[number % 2]
        mine = {"request_id": f"r{number}", "unit": f"unit-{number}", "arm": arm}
        asked.append({**row, **mine, "assigned_version": arm, "served_version": arm})
    store.add_exposures(asked)
    said = [
        outcome_row("bench", f"r{number}", "resolved", float(number % 3 == 0), now=2.0) for number in numbers
    ]
    store.add_outcomes(said)


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def rows(store: Store) -> object:
    with store.engine.connect() as connection:
        return connection.execute(text(RECOUNT)).all()


if __name__ == "__main__":
    main()
