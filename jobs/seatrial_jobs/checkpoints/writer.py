"""Checkpoints on their way to storage while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from seatrial_jobs.storage import may_pass

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0


class Writer:
    """Does one write at a time in a thread, and does it again while storage fails in a way that may pass."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.problem: Exception | None = None
        """Why the write under way is being done again; ``None`` while it goes well."""

    def start(self, write: Callable[[], None]) -> None:
        """Begin ``write``, which may be called more than once, after the one before has ended."""
        self.join()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the write under way; whether it ended within ``timeout_s``.

        Raises:
            Exception: what made a write impossible; told once.
        """
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    @property
    def struggling(self) -> bool:
        """Whether a write is under way that storage has refused at least once."""
        return self._thread is not None and self._thread.is_alive() and self.problem is not None

    def _run(self, write: Callable[[], None]) -> None:
        for pause_s in _pauses():
            try:
                write()
            except Exception as error:  # told to whoever waits
                if not may_pass(error):
                    self._error = error
                    break
                self.problem = error
                time.sleep(pause_s)
            else:
                break
        self.problem = None


def patiently(call: Callable[[], T], patience_s: float) -> T:
    """What ``call`` returns, done again for ``patience_s`` while storage fails in a way that may pass."""
    end, pauses = time.monotonic() + patience_s, _pauses()
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error) or time.monotonic() > end:
                raise
        time.sleep(next(pauses))


def _pauses() -> Iterator[float]:
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
