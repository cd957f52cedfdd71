"""An append-only file of JSON lines that outlives the process: what is in it is not lost.

A line is in the kernel's hands when :meth:`Spool.append` returns, so a killed process loses nothing; it is on
the disk when :meth:`Spool.sync` returns, so a lost machine loses nothing either. The owner holds a lock on
the file; a file that nobody holds is an orphan, which any process may take over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger(__name__)
SUFFIX = ".jsonl"
Record = dict[str, Any]


class SpoolFullError(OSError):
    """The file has reached its largest size."""


class Spool:
    """One file, one writer. Safe to use from several threads of that process."""

    def __init__(self, path: Path, *, most_bytes: int = 2**30) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise
        self._size = os.fstat(self._fd).st_size

    @classmethod
    def create(cls, folder: Path, *, most_bytes: int = 2**30) -> Spool:
        """A new file in ``folder``."""
        return cls(folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}", most_bytes=most_bytes)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    def append(self, lines: bytes) -> None:
        """Write whole lines.

        Raises:
            OSError: the disk is full or away; SpoolFullError: the file may grow no further.
        """
        with self._lock:
            if self._size + len(lines) > self._most_bytes:
                raise SpoolFullError(f"{self.path}: {self._size} bytes: the store has been away for too long")
            written = os.write(self._fd, lines)
            if written != len(lines):
                os.ftruncate(self._fd, self._size)
                raise OSError(f"{self.path}: the disk took {written} of {len(lines)} bytes")
            self._size += written

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        os.fdatasync(self._fd)

    def read(self, offset: int, most_bytes: int) -> tuple[list[Record], int]:
        """The records from ``offset`` on and the offset after them; whole lines only."""
        block = os.pread(self._fd, most_bytes, offset)
        end = block.rfind(b"\n") + 1
        return list(parse_lines(block[:end], self.path)), offset + end

    def truncate(self, expected_size: int, kept: bytes) -> bool:
        """Empty the file but for ``kept`` if nothing was appended since it had ``expected_size`` bytes."""
        with self._lock:
            if self._size != expected_size:
                return False
            os.ftruncate(self._fd, 0)
            self._size = os.write(self._fd, kept) if kept else 0
            return True

    def close(self, *, delete: bool) -> None:
        """Let go of the file; ``delete`` it when all of it is in the store."""
        with self._lock:
            if delete:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)


def parse_lines(block: bytes, path: Path) -> Iterator[Record]:
    """The records of ``block``; a line that is none (a torn write) is reported and left out."""
    for line in block.splitlines():
        try:
            record = msgspec.json.decode(line)
        except msgspec.DecodeError:
            log.warning("%s: a line that is no record was left out: %r", path, line[:80])
            continue
        if isinstance(record, dict):
            yield record


def orphans(folder: Path) -> Iterator[Spool]:
    """The files in ``folder`` that no process holds, taken over one after the other."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield Spool(path)
        except BlockingIOError:
            continue  # its owner lives
        except FileNotFoundError:
            continue  # another process replayed it first
