"""The sessions that are open, so that a copied cookie ends with the logout.

Each is a lease in the store, which every controller of the store sees and which outlives all of them. Only
what is signed with the token asks the store, and only a login adds a row; the loop tidies those that ran out.
"""

from __future__ import annotations

from seatrial.controller.auth import SESSION_S
from seatrial.store import Store

HOLDER = "somebody who logged in"


class Sessions:
    """Opens, asks for and ends sessions by their ids.

    Raises (every method):
        RetryableError: the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, session: str, now: float) -> None:
        """From now on it is open."""
        self._store.take_lease(_name(session), HOLDER, now=now, lasts_s=SESSION_S)

    def is_open(self, session: str, now: float) -> bool:
        """Whether it has begun and nobody has ended it."""
        return self._store.holds_lease(_name(session), HOLDER, now=now)

    def end(self, session: str) -> None:
        """From now on it is open for nobody."""
        self._store.give_back_lease(_name(session), HOLDER)


def _name(session: str) -> str:
    return f"session:{session}"
