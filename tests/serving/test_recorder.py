"""Nothing that was recorded is lost: not by the store's absence, not by the process's death."""

from __future__ import annotations

import asyncio
import json
import os
import random
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
from seatrial_serving import recorder as recorder_module
from seatrial_serving import spool as spool_module
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
    recorder.exposed(exposure(3, completion_tokens=2**70))
    assert recorder.flush()
    assert rows(store, "exposures") == ["r1", "r2"]
    assert recorder.dropped == 2


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


@pytest.mark.parametrize("call", ["write", "rename", "fdatasync"])
def test_a_spool_that_cannot_be_shortened_keeps_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    spool = Spool.create(tmp_path)
    spool.append(b'{"n":1}\n{"n":2}\n')

    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path if call == "rename" else spool_module.os, call, full)
        with pytest.raises(OSError, match="No space"):
            spool.drop(8, b'{"kept":1}\n')
    assert spool.read(0, 1000)[0] == [{"n": 1}, {"n": 2}]
    spool.append(b'{"n":3}\n')
    spool.drop(8, b'{"kept":1}\n')
    assert spool.read(0, 1000)[0] == [{"kept": 1}, {"n": 2}, {"n": 3}]
    assert spool.size == spool.path.stat().st_size
    spool.sync()
    assert list(orphans(tmp_path)) == [], "the new file is locked too"


def test_half_a_line_is_taken_back_or_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool.create(tmp_path)
    spool.append(b'{"n":1}\n')
    write = os.write

    def half(fd: int, data: bytes) -> int:
        return write(fd, data[:4])

    def away(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(spool_module.os, "write", half)
        with pytest.raises(OSError, match="took 4 of 8"):
            spool.append(b'{"n":2}\n')
        assert spool.read(0, 1000) == ([{"n": 1}], 8)
        patched.setattr(spool_module.os, "ftruncate", away)
        with pytest.raises(OSError, match="took 4 of 8"):
            spool.append(b'{"n":3}\n')
    assert spool.read(0, 1000) == ([{"n": 1}], 8), "half a line is no record"
    spool.append(b'{"n":4}\n')
    assert spool.read(0, 1000)[0] == [{"n": 1}, {"n": 4}]
    assert spool.size == spool.path.stat().st_size


async def test_a_spool_that_somebody_cut_is_an_error_once(tmp_path: Path, store: Store) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder.opened(exposure(0))
    recorder.exposed(exposure(1))
    recorder.flush()
    recorder.exposed(exposure(2))
    os.truncate(recorder._spool.path, 0)
    with pytest.raises(OSError, match="somebody cut it"):
        recorder.flush()
    recorder.exposed(exposure(3))
    recorder.flush()
    assert rows(store, "exposures") == ["r1", "r3"]


async def test_rows_without_any_room_are_counted(tmp_path: Path, store: Store) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store, buffer_rows=2)
    recorder._spool._most_bytes = 10
    for number in range(5):
        recorder.exposed(exposure(number))
    assert recorder.dropped == 3
    assert recorder.flush()
    assert rows(store, "exposures") == ["r0", "r1"]


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


LOADED = """
import asyncio, sys, json, itertools
from pathlib import Path
from seatrial_serving.outcomes import accept
from seatrial_serving.recorder import Recorder, store_of
exposure = json.loads(sys.argv[2])
async def main():
    recorder = Recorder(Path(sys.argv[1]), lambda: store_of(sys.argv[3]), flush_s=0.001)
    recorder.start()
    numbers = itertools.count(1)
    async def call():
        for number in numbers:
            name = f"r{number}"
            recorder.exposed({**exposure, "request_id": name})
            await accept({"request_id": name, "metric": "resolved", "value": 1}, "svc", recorder)
            print(name, flush=True)
    await asyncio.gather(*(call() for _ in range(16)))
asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(6))
async def test_a_process_that_is_killed_under_load_keeps_what_it_answered_whatever_it_was_doing(
    tmp_path: Path, store: Store, seed: int
) -> None:
    moment_s = random.Random(seed).uniform(0.0, 0.6)  # noqa: S311  # a moment, no secret
    spool, url = tmp_path / "spool", str(store.engine.url)
    command = [sys.executable, "-c", LOADED, str(spool), json.dumps(exposure(0)), url]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    answered = {child.stdout.readline().strip()}
    asyncio.get_running_loop().call_later(moment_s, os.kill, child.pid, signal.SIGKILL)
    answered |= set((await asyncio.to_thread(child.stdout.read)).split("\n")[:-1])
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()

    recorder = Recorder(spool, lambda: store)
    recorder.replay_orphans()
    assert answered <= set(rows(store, "outcomes"))
    assert answered <= set(rows(store, "exposures"))
    assert len(rows(store, "outcomes")) == len(set(rows(store, "outcomes")))
    recorder.close()


def test_a_living_owners_spool_is_left_alone(tmp_path: Path) -> None:
    mine = Spool.create(tmp_path)
    mine.append(b"{}\n")
    assert list(orphans(tmp_path)) == []
    mine.close(delete=False)
    assert len(list(orphans(tmp_path))) == 1


def test_a_file_that_its_owner_replaced_or_deleted_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened it before the change and locks it after must leave the new file alone."""
    mine = Spool.create(tmp_path)
    mine.append(b'{"n":1}\n')
    flock = spool_module.fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr(spool_module.fcntl, "flock", flock)
        mine.drop(0, b"")
        flock(fd, operation)

    monkeypatch.setattr(spool_module.fcntl, "flock", late)
    assert list(orphans(tmp_path)) == []
    assert mine.read(0, 100)[0] == [{"n": 1}]
    mine.close(delete=True)
    with pytest.raises(FileNotFoundError):
        Spool(mine.path, flags=0)
    assert list(tmp_path.iterdir()) == [], "a scanner does not create again what is gone"


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
