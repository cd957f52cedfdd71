"""Records reach the store, whatever it refuses and however long it is away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from seatrial.errors import RetryableError
from seatrial.store import Store, outcome_row
from seatrial_serving import recorder as recorder_module
from seatrial_serving.recorder import Recorder
from tests.serving.recording import exposure, outcome, rows


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
    recorder.exposed(exposure(3, completion_tokens=2**70))
    assert recorder.flush()
    assert rows(store, "exposures") == ["r1", "r2"]
    assert recorder.dropped == 2


async def test_what_only_counts_outcomes_holds_no_records_up(tmp_path: Path, store: Store) -> None:
    told: list[int] = []

    def fails(_: object, rows: Any) -> None:
        told.append(len(rows))
        raise RuntimeError("no such series")

    recorder = Recorder(tmp_path / "spool", lambda: store, on_outcomes=fails)
    await recorder.outcomes([outcome(1)])
    assert recorder.flush()
    recorder.exposed(exposure(2))
    assert recorder.flush()
    assert (rows(store, "outcomes"), rows(store, "exposures")) == (["r1"], ["r2"])
    assert told == [1], "once for each outcome"


async def test_a_row_that_postgresql_cannot_keep_is_dropped_alone_and_evidence_goes_on(
    tmp_path: Path, postgres_url: str
) -> None:
    store = Store(postgres_url)
    store.migrate()
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder.exposed(exposure(1, request_id="pg-nul", unit="a\0b"))
    assert recorder.flush(), "also when every row of a batch is refused"
    await recorder.outcomes([outcome_row("svc", "a\0b", "resolved", 1.0, now=1.0)])
    recorder.exposed(exposure(1, request_id="pg-long", arm="x" * 40))
    recorder.exposed(exposure(1, request_id="pg-good"))
    assert recorder.flush()
    assert recorder.dropped == 3
    assert rows(store, "exposures") == ["pg-good"]
    store.close()


async def test_under_steady_load_the_spool_shrinks_and_loses_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "DROP_BYTES", 4096)
    number = 0

    class Busy:
        """A store in whose every write more records come in."""

        def add_exposures(self, rows: Any) -> None:
            nonlocal number
            store.add_exposures(rows)
            number += 1
            recorder.opened(exposure(number))
            number += 1
            recorder.exposed(exposure(number))
            await_outcome.append(asyncio.ensure_future(recorder.outcomes([outcome(number)])))

        def add_outcomes(self, rows: Any) -> None:
            store.add_outcomes(rows)

    await_outcome: list[asyncio.Future[None]] = []
    recorder = Recorder(tmp_path / "spool", Busy)  # type: ignore[arg-type]
    recorder._drop_at = 4096
    recorder.exposed(exposure(0))
    sizes = []
    for _ in range(60):
        assert recorder.flush(), "one block a time, not back to back"
        sizes.append(next((tmp_path / "spool").glob("*.jsonl")).stat().st_size)
        for _ in range(3):
            await asyncio.sleep(0)
        recorder.exposed(exposure(number - 1)) if number % 20 else None
    await asyncio.gather(*await_outcome)
    assert max(sizes) < 16384
    recorder._writer = store
    recorder.flush()
    kept = {f"r{n}" for n in range(number + 1)}
    assert kept - set(rows(store, "exposures")) == set(recorder._open)
    assert len(rows(store, "outcomes")) == len(await_outcome)
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".jsonl"]


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
