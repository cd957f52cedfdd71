"""An append-only file of JSON lines that outlives the process: what is in it is not lost.

A line is in the kernel's hands when :meth:`Spool.append` returns, so a killed process loses nothing; it is on
the disk when :meth:`Spool.sync` returns, so a lost machine loses nothing either. The owner holds a lock on
the file; a file that nobody holds is an orphan, which any process may take over.
"""

from __future__ import annotations

import errno
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
SUFFIX, PARTIAL_SUFFIX = ".jsonl", ".partial"
COPY_BYTES = 2**20
Record = dict[str, Any]


class SpoolFullError(OSError):
    """The file has reached its largest size."""


class Spool:
    """One file, one writer. Appending and syncing are safe from any thread, the rest is one thread's."""

    def __init__(self, path: Path, *, most_bytes: int = 2**30, flags: int = os.O_CREAT) -> None:
        """Open and lock ``path``; without ``flags`` it must be there.

        Raises:
            BlockingIOError: another process holds it; FileNotFoundError: it is gone.
        """
        self.path = path
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._is_torn = False
        self._is_named = False
        self._fd = _open_locked(path, flags)
        try:
            # Whoever held it may have replaced or deleted it between our opening and locking it.
            if not os.path.samestat(os.fstat(self._fd), path.stat()):
                raise FileNotFoundError(f"{path}: replaced by its owner")
        except OSError:
            os.close(self._fd)
            raise
        self._size = os.fstat(self._fd).st_size

    @classmethod
    def create(cls, folder: Path, *, most_bytes: int = 2**30) -> Spool:
        """A new file in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}", most_bytes=most_bytes)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    def append(self, lines: bytes) -> None:
        """Write whole lines.

        Raises:
            OSError: the disk is full or away, or the file is closed; SpoolFullError: it may grow no further.
        """
        with self._lock:
            self._check_open()
            if self._size + len(lines) > self._most_bytes:
                raise SpoolFullError(f"{self.path}: {self._size} bytes: the store has been away for too long")
            # After a torn line a new one must not be taken for its end.
            data = b"\n" + lines if self._is_torn else lines
            written = 0
            try:
                written = os.write(self._fd, data)
                if written != len(data):
                    raise OSError(f"{self.path}: the disk took {written} of {len(data)} bytes")
            except OSError:
                if written:
                    self._untear()
                raise
            self._is_torn = False
            self._size += written

    def _untear(self) -> None:
        """Take back half a line, or remember that it is there."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._is_torn = True
            self._size = os.fstat(self._fd).st_size

    def sync(self) -> None:
        """Return when all that was appended is on the disk, and the file's name too.

        Raises:
            OSError: the disk refuses, or the file is closed.
        """
        with self._lock:
            self._check_open()
            fd = os.dup(self._fd)  # the file may be replaced meanwhile; what replaces it has been synced
            is_named, self._is_named = self._is_named, True
        try:
            os.fdatasync(fd)
            if not is_named:
                _sync_folder(self.path.parent)
        except OSError:
            self._is_named = False
            raise
        finally:
            os.close(fd)

    def _check_open(self) -> None:
        if self._fd < 0:
            raise OSError(f"{self.path}: closed: its process ends")

    def read(self, offset: int, most_bytes: int) -> tuple[list[Record], int]:
        """The records from ``offset`` on and the offset after them; whole lines only.

        Raises:
            OSError: the file is shorter than what was appended to it.
        """
        size = self._size  # what lies behind it is being written, or being taken back
        block = os.pread(self._fd, max(0, min(most_bytes, size - offset)), offset)
        end = block.rfind(b"\n") + 1
        if not block and offset < size:
            with self._lock:
                self._size = os.fstat(self._fd).st_size
            raise OSError(f"{self.path}: ends before byte {offset}: somebody cut it")
        if end == 0 and len(block) == most_bytes:
            log.error("%s: %d bytes without a line were left out", self.path, most_bytes)
            end = most_bytes
        return list(parse_lines(block[:end], self.path)), offset + end

    def empty(self, expected_size: int) -> bool:
        """Empty the file if nothing was appended since it had ``expected_size`` bytes; whether it is empty.

        Raises:
            OSError: the disk refuses; the file is as it was.
        """
        with self._lock:
            if self._size == expected_size:
                os.ftruncate(self._fd, 0)
                self._size = 0
                self._is_torn = False
            return self._size == 0

    def drop(self, offset: int, kept: bytes) -> None:
        """Put a new file in this one's place, with ``kept`` instead of what lies before ``offset``.

        Nothing is lost when it fails or when the process dies in it. Only the last bytes are copied under the
        lock, so that appending goes on.

        Raises:
            OSError: the disk refuses; the file is as it was.
        """
        partial = self.path.with_suffix(PARTIAL_SUFFIX)
        fd = _open_locked(partial, os.O_CREAT | os.O_TRUNC)
        try:
            _write_all(fd, kept)
            copied = _copy(self._fd, offset, self._size, fd)
            os.fdatasync(fd)  # outcomes were promised to be on the disk
            with self._lock:
                _copy(self._fd, copied, self._size, fd)
                os.fdatasync(fd)
                partial.rename(self.path)
                fd, self._fd = self._fd, fd
                self._size = os.fstat(self._fd).st_size
                self._is_named = False
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def close(self, *, delete: bool, size: int | None = None) -> None:
        """Let go of the file; ``delete`` it when all of it is in the store.

        With ``size`` it is deleted only if it still has so many bytes.
        """
        with self._lock:
            if delete and size in (None, self._size):
                self.path.with_suffix(PARTIAL_SUFFIX).unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)
            fd, self._fd = self._fd, -1
            os.close(fd)


def _open_locked(path: Path, flags: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what network file systems say that do not sync folders
            raise
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _copy(source: int, start: int, end: int, target: int) -> int:
    """Append the bytes ``start`` to ``end`` of ``source`` to ``target``; returns ``end``."""
    while start < end:
        block = os.pread(source, min(COPY_BYTES, end - start), start)
        if not block:
            raise OSError(f"the spool ends at byte {start} of {end}")
        _write_all(target, block)
        start += len(block)
    return end


def parse_lines(block: bytes, path: Path) -> Iterator[Record]:
    """The records of ``block``; a line that is none (a torn write) is reported and left out."""
    for line in block.splitlines():
        if not line:
            continue
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.warning("%s: a line that is no record was left out: %r", path, line[:80])
            continue
        if isinstance(record, dict):
            yield record


def orphans(folder: Path) -> Iterator[Spool]:
    """The files in ``folder`` that no process holds, taken over one after the other."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield Spool(path, flags=0)
        except BlockingIOError:
            continue  # its owner lives
        except FileNotFoundError:
            continue  # its owner, or another process that replayed it, deleted or replaced it
