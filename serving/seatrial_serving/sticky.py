"""Who was exposed to which arm, for a trial whose weights have changed: they stay where they were.

The hash alone decides until a table's bucket version is above 0. From then on a thread of the replica reads
the exposed units from the store, and the replica adds those that it routes itself. A request never waits
for any of this: for a unit that is not known here, because the store is away, or has not been read yet, or
holds more units than are kept, the hash with the new weights decides.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from seatrial_serving.live import Live

log = logging.getLogger(__name__)
EVERY_S = 0.5
AWAY_S = 5.0


class Reader(Protocol):
    """The part of :class:`seatrial.store.Store` that is used."""

    def sticky(self, trial_id: str, after: int = 0) -> tuple[list[tuple[str, str]], int]: ...


class Sticky:
    """Keeps ``live.sticky`` current; one for each replica."""

    def __init__(self, live: Live, connect: Callable[[], Reader]) -> None:
        self._live = live
        self._connect = connect
        self._store: Reader | None = None
        self._trial = ""
        self._cursor = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="seatrial-sticky", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()

    def refresh(self) -> None:
        """Read what is new.

        Raises:
            RetryableError: the store is away.
        """
        table = self._live.table
        trial = table.trial.id if table.trial is not None and table.keeps_units else ""
        memory = self._live.sticky
        if memory.trial != trial:
            self._live.sticky = memory = type(memory)(trial)
        if self._trial != trial:
            self._trial, self._cursor = trial, 0
        while trial and not self._stop.is_set():
            if self._store is None:
                self._store = self._connect()
            pairs, self._cursor = self._store.sticky(trial, self._cursor)
            if not pairs:
                return
            for unit, arm in pairs:
                memory.learn(unit, sys.intern(arm))

    def _run(self) -> None:
        wait_s = EVERY_S
        while not self._stop.wait(wait_s):
            try:
                self.refresh()
                wait_s = EVERY_S
            except Exception as error:  # whatever it is, the hash decides meanwhile
                if wait_s == EVERY_S:
                    log.warning("units of the trial cannot be read now: %s", error)
                wait_s = AWAY_S
