"""The controller's API behind its gate, as a site that a test serves, and a browser that has logged in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from seatrial.controller.api import build
from seatrial.controller.auth import Access
from seatrial.controller.login import Gate
from seatrial.controller.loop import Controller
from seatrial.controller.sessions import Sessions
from seatrial.controller.webhooks import Receiver
from seatrial.store import Store
from tests.controller.one_replica import OneReplica

TOKEN = "a-token-of-at-least-32-characters-x"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER = {"Accept": "text/html,*/*"}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """The controller's API behind its gate."""

    def __init__(self, folder: Path, token: str | None) -> None:
        store = Store(f"sqlite:///{folder / 'store.db'}")
        store.migrate()
        serve: Any = OneReplica(store)
        self.controller = Controller(store, serve, "http://127.0.0.1:9")
        self.clock = Clock()
        api = build(self.controller, Receiver("s" * 32, self.controller.wake))
        self.store = store
        self.api = api
        self.gate = Gate(api, Access.of(token), Sessions(store), clock=self.clock)


@contextmanager
def logged_in(url: str) -> Iterator[httpx.Client]:
    """A browser that has logged in."""
    with httpx.Client(base_url=url, headers=BROWSER) as browser:
        assert browser.post("/login", data={"token": TOKEN}, headers={"Origin": url}).status_code == 303
        yield browser
