"""Which of several controllers of one store acts. The others stand by."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable

from seatrial.store import Store

NAME = "controller"
LEASE_S = 20.0
RENEW_S = LEASE_S / 3


class Leadership:
    """A lease in the store, taken when it is free and renewed in good time; safe to ask from any thread."""

    def __init__(self, store: Store, *, clock: Callable[[], float], holder: str | None = None) -> None:
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._taken_at: float | None = None

    def leader(self) -> str:
        """Who may act now; this controller if nobody else may.

        Raises:
            RetryableError: the store does not answer.
        """
        with self._lock:
            now = self._clock()
            if self._taken_at is not None and 0 <= now - self._taken_at < RENEW_S:
                return self.holder
            self._taken_at = None
            leader = self._store.take_lease(NAME, self.holder, now=now, lasts_s=LEASE_S)
            if leader == self.holder:
                self._taken_at = now
            return leader

    def renew(self) -> None:
        """Go on holding the lease if this controller holds it.

        Raises:
            RetryableError: the store does not answer.
        """
        if self._taken_at is not None:
            self.leader()

    def is_held(self) -> bool:
        """Whether this controller may act now.

        Raises:
            RetryableError: the store does not answer.
        """
        return self.leader() == self.holder

    def resign(self) -> None:
        """Let another one act at once.

        Raises:
            RetryableError: the store does not answer; the lease runs out by itself.
        """
        with self._lock:
            self._taken_at = None
            self._store.give_back_lease(NAME, self.holder)
