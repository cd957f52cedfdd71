"""Nothing that was recorded is lost: not by the store's absence, not by the process's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from seatrial.errors import RetryableError
from seatrial.store import Store, outcome_row
from seatrial_serving.recorder import Recorder
from seatrial_serving.spool import Spool, SpoolFullError, orphans


def exposure(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "trial_id": "t",
        "service": "svc",
        "unit": f"u{number}",
        "sticky": True,
        "arm": "champion",
        "assigned_version": "1",
        "served_version": "1",
        "fallback": False,
        "status": 200,
        "at": 1.0,
        "ttft_s": 0.1,
        **changes,
    }


def outcome(number: int) -> dict[str, Any]:
    return outcome_row("svc", f"r{number}", "resolved", 1.0, now=2.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(f"sqlite:///{tmp_path / 'store.db'}")
    made.migrate()
    return made


def rows(store: Store, table: str) -> list[str]:
    with store.engine.connect() as connection:
        return [row[0] for row in connection.execute(text(f"select request_id from {table} order by at, 1"))]  # noqa: S608


class Away:
    """A store that cannot be reached."""

    def add_exposures(self, rows: object) -> None:
        raise RetryableError("away")

    add_outcomes = put_replica = add_exposures


async def test_records_reach_the_store_and_the_spool_shrinks(tmp_path: Path, store: Store) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder.opened(exposure(1))
    recorder.exposed(exposure(1, latency_s=0.5))
    recorder.exposed(exposure(2))
    await recorder.outcomes([outcome(1)])
    assert recorder.flush()
    assert rows(store, "exposures") == ["r1", "r2"]
    assert rows(store, "outcomes") == ["r1"]
    assert next((tmp_path / "spool").iterdir()).stat().st_size == 0
    assert recorder.flush()


async def test_an_absent_store_delays_records_and_loses_none(tmp_path: Path, store: Store) -> None:
    where: list[Any] = [Away()]
    recorder = Recorder(tmp_path / "spool", lambda: where[0])
    for number in range(1000):
        recorder.exposed(exposure(number))
    began = time.perf_counter()
    await recorder.outcomes([outcome(7)])
    assert time.perf_counter() - began < 1
    with pytest.raises(RetryableError):
        recorder.flush()
    recorder._writer = store
    while not recorder.flush():
        pass
    assert len(rows(store, "exposures")) == 1000
    assert rows(store, "outcomes") == ["r7"]


async def test_the_thread_carries_over_by_itself_when_the_store_returns(tmp_path: Path, store: Store) -> None:
    where: list[Any] = [Away()]

    def connect() -> Any:
        if isinstance(where[0], Away):
            raise RetryableError("away")
        return where[0]

    recorder = Recorder(tmp_path / "spool", connect, flush_s=0.02)
    recorder.start()
    recorder.exposed(exposure(1))
    await asyncio.sleep(0.1)
    where[0] = store
    for _ in range(200):
        if rows(store, "exposures"):
            break
        await asyncio.sleep(0.05)
    recorder.close()
    assert rows(store, "exposures") == ["r1"]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_row_that_the_store_refuses_does_not_hold_up_the_others(tmp_path: Path, store: Store) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder.exposed(exposure(1))
    recorder.exposed({"request_id": "bad", "unknown": 1})
    recorder.exposed(exposure(2))
    assert recorder.flush()
    assert rows(store, "exposures") == ["r1", "r2"]


CHILD = """
import asyncio, sys, json, os
from pathlib import Path
from seatrial_serving.recorder import Recorder
from seatrial.store import outcome_row
exposure = json.loads(sys.argv[2])
def connect():
    raise OSError("no store")
async def main():
    recorder = Recorder(Path(sys.argv[1]), connect, flush_s=0.01)
    recorder.start()
    number = 0
    while True:
        number += 1
        row = {**exposure, "request_id": f"r{number}"}
        recorder.opened(row)
        await recorder.outcomes([outcome_row("svc", f"r{number}", "resolved", 1.0, now=1.0)])
        print(number, flush=True)
        if number % 3:
            recorder.exposed(row)
asyncio.run(main())
"""


async def test_a_killed_process_loses_nothing_that_it_had_answered(tmp_path: Path, store: Store) -> None:
    spool = tmp_path / "spool"
    command = [sys.executable, "-c", CHILD, str(spool), json.dumps(exposure(0))]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(40)][-1]
    os.kill(child.pid, signal.SIGKILL)
    seen = max([seen, *(int(line) for line in child.stdout.read().split())])
    child.wait()
    child.stdout.close()

    recorder = Recorder(spool, lambda: store)
    assert recorder.replay_orphans() >= 2 * seen
    acknowledged = {f"r{number}" for number in range(1, seen + 1)}
    assert acknowledged <= set(rows(store, "outcomes"))
    assert acknowledged <= set(rows(store, "exposures")), "answers that had begun are exposures too"
    assert recorder.replay_orphans() == 0
    assert len(list(spool.iterdir())) == 1, "only the living one's file is left"


def test_a_living_owners_spool_is_left_alone(tmp_path: Path) -> None:
    mine = Spool.create(tmp_path)
    mine.append(b"{}\n")
    assert list(orphans(tmp_path)) == []
    mine.close(delete=False)
    assert len(list(orphans(tmp_path))) == 1


def test_a_torn_line_is_left_out_and_the_rest_kept(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    whole = json.dumps({"t": "exposure", **exposure(1)})
    (folder / "1-dead.jsonl").write_text(f'{whole}\n{{"torn": \n{whole[:20]}')
    recorder = Recorder(folder, lambda: store)
    recorder.replay_orphans()
    assert rows(store, "exposures") == ["r1"]


async def test_a_full_spool_refuses_outcomes_and_keeps_exposures_in_memory(
    tmp_path: Path, store: Store
) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder._spool._most_bytes = 10
    recorder.exposed(exposure(1))
    with pytest.raises(SpoolFullError):
        await recorder.outcomes([outcome(1)])
    assert recorder.flush()
    assert rows(store, "exposures") == ["r1"]
    assert rows(store, "outcomes") == []


async def test_status_is_repeated_so_that_its_age_tells_whether_the_replica_lives(
    tmp_path: Path, store: Store
) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store, status_s=0.0)
    row = {"replica_id": "a", "app": "svc", "service": "svc", "revision": "r1", "loaded": {"1": "ready"}}
    recorder.status(row)
    recorder.flush()
    first = replicas(store)
    await asyncio.sleep(0.01)
    recorder.flush()
    assert first[0][0] == replicas(store)[0][0] == '{"1": "ready"}'
    assert replicas(store)[0][1] > first[0][1]


def replicas(store: Store) -> list[Any]:
    with store.engine.connect() as connection:
        return list(connection.execute(text("select loaded, at from replicas")))
