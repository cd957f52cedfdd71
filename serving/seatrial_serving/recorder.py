"""Exposures and outcomes on their way to the store, and the replica's own status.

The request path only ever writes to the spool; one thread carries the spool's records to the store in
batches, and takes over the spools of processes that died. So an answer never waits for the store, and a
record outlives both the store's absence and the process's death.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from seatrial.errors import RetryableError
from seatrial_serving.spool import Record, Spool, orphans

log = logging.getLogger(__name__)

EXPOSURE, OPENED, ENDED, OUTCOME = "exposure", "opened", "ended", "outcome"
BLOCK_BYTES = 2**18
# The file is replaced by its undelivered rest once that much of it is in the store.
DROP_BYTES = 2**22
UNSPOOLED_BATCH = 500
DROPPED_LOG_EVERY = 1000
# What an answer has become whose process died before it sent the last piece.
CUT: Record = {"status": 500, "error": "the process that answered ended before its answer did"}
ORPHANS_EVERY_S = 5.0
MOST_WAIT_S = 5.0
_encode = msgspec.json.Encoder().encode
Add = Callable[[Sequence[Record]], None]


class Writer(Protocol):
    """The part of :class:`seatrial.store.Store` that is used."""

    def add_exposures(self, rows: Sequence[Record]) -> None: ...
    def add_outcomes(self, rows: Sequence[Record]) -> None: ...
    def put_replica(self, row: Record) -> None: ...


class Recorder:
    """One for each replica. Everything but :meth:`flush` is called from the event loop and does not block."""

    def __init__(
        self,
        folder: Path,
        connect: Callable[[], Writer],
        *,
        flush_s: float = 0.3,
        status_s: float = 3.0,
        buffer_rows: int = 10_000,
        on_outcomes: Callable[[Any, Sequence[Record]], None] | None = None,
    ) -> None:
        self._folder = folder
        self._connect = connect
        self._flush_s = flush_s
        self._status_s = status_s
        self._spool = Spool.create(folder)
        self._open: dict[str, bytes] = {}
        self._unspooled: deque[Record] = deque()
        self._buffer_rows = buffer_rows
        self._on_outcomes = on_outcomes
        """Told of the store and the outcomes that it has just taken, in the recorder's thread."""
        self._is_in_memory = False
        self.dropped = 0
        """Rows that were lost: refused by the store, or without any room left."""
        self._offset = 0
        self._drop_at = DROP_BYTES
        self._writer: Writer | None = None
        self._status: Record | None = None
        self._status_due_s = 0.0
        self._orphans_due_s = 0.0
        self._wake = threading.Event()
        self._stopped = False
        self._waiting: list[asyncio.Future[None]] = []
        self._syncing: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="seatrial-recorder", daemon=True)

    def start(self) -> None:
        """Start the thread that carries records to the store."""
        self._thread.start()

    def opened(self, row: Record) -> None:
        """An answer is about to be read: should this process die before it has :meth:`ended`, it failed."""
        line = _encode({"t": OPENED, **row}) + b"\n"
        self._open[row["request_id"]] = line
        self._append(line, None)

    def ended(self, request_id: str) -> None:
        """The last piece of an opened answer is about to be sent: should this process die, it was whole."""
        line = _encode({"t": ENDED, "request_id": request_id}) + b"\n"
        self._open[request_id] += line
        self._append(line, None)

    def exposed(self, row: Record) -> None:
        """An answer in a trial is over, well or badly."""
        record = {"t": EXPOSURE, **row}
        self._append(_encode(record) + b"\n", record)
        # Only now: the thread may shorten the file at any moment, and what is open stays in it.
        self._open.pop(row["request_id"], None)

    async def outcomes(self, rows: Sequence[Record]) -> None:
        """Return when the rows are safe on the disk; callers that come together share one sync.

        Raises:
            OSError: they are not: the disk is full or away.
        """
        self._spool.append(b"".join(_encode({"t": OUTCOME, **row}) + b"\n" for row in rows))
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.create_task(self._sync())
        await done

    def status(self, row: Record) -> None:
        """The replica's state changed; it is repeated every ``status_s`` until the next change."""
        self._status = row
        self._status_due_s = 0.0
        self._wake.set()

    def close(self, wait_s: float = 3.0) -> None:
        """Carry over what is left, as far as the store allows within ``wait_s``."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def flush(self) -> bool:
        """Carry one block over; whether that was the last one that was full.

        Raises:
            RetryableError: the store is away; nothing is lost.
            OSError: the spool cannot be read.
        """
        self._put_status()
        while self._unspooled:
            # The event loop appends meanwhile, which an iteration would not bear.
            count = min(len(self._unspooled), UNSPOOLED_BATCH)
            self._write([self._unspooled[index] for index in range(count)])
            for _ in range(count):
                self._unspooled.popleft()
        is_last = self._spool.size - self._offset <= BLOCK_BYTES
        try:
            records, end = self._spool.read(self._offset, BLOCK_BYTES)
        except OSError:
            self._offset = min(self._offset, self._spool.size)
            raise
        if end > self._offset:
            self._write(records)
            self._offset = end
        self._shrink()
        return is_last

    def replay_orphans(self) -> int:
        """Carry over the spools of processes that died; how many records."""
        found = 0
        for spool in orphans(self._folder):
            is_done = False
            try:
                found += self._replay(spool)
                is_done = True
            finally:
                spool.close(delete=is_done)
        return found

    def _replay(self, spool: Spool) -> int:
        offset, found = 0, 0
        opened: dict[str, Record] = {}
        ended: set[str] = set()
        while True:
            records, end = spool.read(offset, BLOCK_BYTES)
            if end == offset:
                break
            offset = end
            for record in records:
                if record.get("t") == OPENED:
                    opened[record["request_id"]] = record
                elif record.get("t") == ENDED:
                    ended.add(record["request_id"])
                elif record.get("t") == EXPOSURE:
                    opened.pop(record["request_id"], None)
            found += self._write(records)
        whole = [{**record, "t": EXPOSURE} for name, record in opened.items() if name in ended]
        cut = [{**record, "t": EXPOSURE, **CUT} for name, record in opened.items() if name not in ended]
        return found + self._write(whole + cut)

    def _append(self, line: bytes, record: Record | None) -> None:
        try:
            self._spool.append(line)
            self._is_in_memory = False
        except OSError as error:
            if not self._is_in_memory:
                log.error("exposures are kept in memory only: %s", error)
            self._is_in_memory = True
            if record is None:
                return
            if len(self._unspooled) < self._buffer_rows:
                self._unspooled.append(record)
                return
            if self.dropped % DROPPED_LOG_EVERY == 0:
                log.error("an exposure was dropped, after %d others: no room on the disk", self.dropped)
            self.dropped += 1

    async def _sync(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failure: OSError | None = None
            try:
                await asyncio.to_thread(self._spool.sync)
            except OSError as error:
                failure = error
            for future in batch:
                if future.done():
                    continue  # its client went away
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)

    def _shrink(self) -> None:
        """Take what is in the store out of the file: at once when that is everything, else now and then."""
        kept = b"".join(list(self._open.values()))
        if not kept and self._offset == self._spool.size:
            if self._offset and self._spool.empty(self._offset):
                self._offset = 0
        elif self._offset >= self._drop_at:
            try:
                self._spool.drop(self._offset, kept)
            except OSError as error:
                self._drop_at = self._offset + DROP_BYTES
                log.warning("the spool cannot be shortened now: %s", error)
            else:
                self._offset, self._drop_at = 0, len(kept) + DROP_BYTES

    def _put_status(self) -> None:
        now = time.monotonic()
        if self._status is not None and now >= self._status_due_s:
            self._status_due_s = now + self._status_s
            self._store().put_replica({**self._status, "at": time.time()})

    def _store(self) -> Writer:
        if self._writer is None:
            self._writer = self._connect()
        return self._writer

    def _write(self, records: Sequence[Record]) -> int:
        """Write what is a row in the store, and skip what is none; how many were."""
        rows: dict[str, list[Record]] = {EXPOSURE: [], OUTCOME: []}
        for record in records:
            kind = record.get("t")
            if kind in rows:
                rows[kind].append({name: value for name, value in record.items() if name != "t"})
        store = self._store()
        self._add(store.add_exposures, rows[EXPOSURE])
        self._add(store.add_outcomes, rows[OUTCOME])
        if self._on_outcomes is not None and rows[OUTCOME]:
            try:
                self._on_outcomes(store, rows[OUTCOME])
            except Exception as error:  # they are in the store, and that is what counts
                log.warning("%d outcomes are missing in the metrics: %s", len(rows[OUTCOME]), error)
        return sum(map(len, rows.values()))

    def _add(self, add: Add, rows: list[Record]) -> None:
        """Write a batch. A batch with rows that the store refuses is written row by row, without those."""
        if not rows:
            return
        try:
            add(rows)
        except RetryableError:
            raise
        except Exception as error:
            refused = [row for row in rows if not _add_one(add, row)]
            if len(refused) == len(rows) and not isinstance(error, ValueError):
                raise  # nothing at all is taken: the trouble is the store's
            self.dropped += len(refused)
            log.error(
                "the store refused %d of %d rows, %d since the start, first %r: %s",
                *(len(refused), len(rows), self.dropped, refused[:1], error),
            )

    def _run(self) -> None:
        wait_s = self._flush_s
        is_away = False
        while True:
            self._wake.wait(wait_s)
            self._wake.clear()
            stopping = self._stopped
            try:
                while not self.flush():
                    pass
                if time.monotonic() >= self._orphans_due_s:
                    self._orphans_due_s = time.monotonic() + ORPHANS_EVERY_S
                    self.replay_orphans()
                wait_s, is_away = self._flush_s, False
            except Exception as error:  # whatever the store's trouble is, the records wait for its end
                if not is_away:
                    log.warning("the store does not take records, they wait in %s: %s", self._folder, error)
                wait_s, is_away = min(2 * wait_s, MOST_WAIT_S), True
            if stopping:
                self._spool.close(delete=not is_away and not self._open, size=self._offset)
                return


def _add_one(add: Add, row: Record) -> bool:
    try:
        add([row])
    except RetryableError:
        raise
    except Exception:
        return False
    return True


def store_of(url: str) -> Any:
    """The store at ``url``; SQLAlchemy is imported here, off the request path."""
    from seatrial.store import Store

    return Store(url)
