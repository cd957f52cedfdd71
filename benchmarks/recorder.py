"""Outcomes a second, from the body of a request to the store, in one process.

    python -m benchmarks.recorder [--outcomes 50000] [--callers 64]

Callers post one outcome at a time; each waits for its answer, which comes when the outcome is on the disk.
Meanwhile the recorder's thread carries what is on the disk to the store. Prints one JSON object for SQLite
and one for a PostgreSQL that is started for it: outcomes accepted a second, outcomes in the store a second
(from the first request until the last row is there), the latter's ratios to the target and to the naive way,
which inserts each row with SQLAlchemy in a transaction of its own before it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func, insert, select

from seatrial.store import Store, outcome_row
from seatrial.store.tables import outcomes
from seatrial_serving.outcomes import accept
from seatrial_serving.recorder import Recorder
from seatrial_serving.request import encode, parse
from tests.store import postgres

STORES = ("sqlite", "postgresql")
TARGET = 5000.0
NAIVE = 500
SERVICE = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--outcomes", type=int, default=50_000)
    parser.add_argument("--callers", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, url in stores(Path(folder)):
            print(
                json.dumps(measure(name, url, Path(folder) / name, given.outcomes, given.callers)), flush=True
            )


def stores(folder: Path, only: str | None = None) -> Iterator[tuple[str, str]]:
    """Names and URLs, of all or of one."""
    if only in (None, STORES[0]):
        yield STORES[0], f"sqlite:///{folder / 'store.db'}"
    if only in (None, STORES[1]):
        with postgres.running() as url:
            yield STORES[1], url


def measure(name: str, url: str, folder: Path, count: int, callers: int) -> dict[str, object]:
    """One line of figures."""
    with opened(url) as store:
        naive = one_by_one(store)
        accepted, stored = asyncio.run(through_the_recorder(store, folder, count, callers))
    return {
        "store": name,
        "outcomes": count,
        "callers": callers,
        "accepted_per_s": round(accepted),
        "stored_per_s": round(stored),
        "naive_per_s": round(naive),
        "ratio_to_target": round(stored / TARGET, 2),
        "ratio_to_naive": round(stored / naive, 2),
    }


@contextmanager
def opened(url: str) -> Iterator[Store]:
    store = Store(url)
    store.migrate()
    yield store
    store.close()


def one_by_one(store: Store) -> float:
    """Outcomes a second when each is a transaction."""
    rows = [outcome_row(SERVICE, f"naive{number}", "resolved", 1.0, now=1.0) for number in range(NAIVE)]
    began = time.perf_counter()
    for row in rows:
        with store.engine.begin() as connection:
            connection.execute(insert(outcomes), row)
    return NAIVE / (time.perf_counter() - began)


async def through_the_recorder(store: Store, folder: Path, count: int, callers: int) -> tuple[float, float]:
    """Outcomes accepted and stored a second."""
    recorder = Recorder(folder, lambda: store)
    recorder.start()
    bodies = iter([encode({"request_id": f"r{n}", "metric": "resolved", "value": 1}) for n in range(count)])

    async def call() -> None:
        for body in bodies:
            await accept(parse(body), SERVICE, recorder)

    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    accepted_s = time.perf_counter() - began
    while in_store(store) < NAIVE + count:
        await asyncio.sleep(0.05)
    stored_s = time.perf_counter() - began
    recorder.close()
    return count / accepted_s, count / stored_s


def in_store(store: Store) -> int:
    with store.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(outcomes)).scalar_one()


if __name__ == "__main__":
    main()
