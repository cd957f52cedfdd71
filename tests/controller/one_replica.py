"""Ray Serve's side without Ray: keeps what it is given; its one replica can load anything at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from seatrial.reconcile.world import AppStatus
from seatrial.store import Store


class OneReplica:
    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self.deployed: dict[str, Any] = {}

    def apps(self) -> dict[str, AppStatus]:
        return {name: AppStatus(name, "RUNNING", "", app, ("r1",)) for name, app in self.deployed.items()}

    def put(self, apps: Sequence[Any], *, owned: Sequence[str]) -> None:
        others = {name: app for name, app in self.deployed.items() if name not in owned}
        self.deployed = {**others, **{app["name"]: app for app in apps}}
        self.speak(*apps)

    def speak(self, *apps: Any) -> None:
        """Have the replicas of ``apps``, or all, say that they are there, as real ones do again and again."""
        for app in apps or self.deployed.values():
            told = app["deployments"][0]["user_config"]
            loaded = {entry["version"]: "ready" for entry in told["preload"]}
            row = {"replica_id": f"{app['name']}#r1", "app": app["name"], "service": app["name"]}
            row |= {"loaded": loaded, "revision": told["revision"], "at": self._clock()}
            self._store.put_replica(row)
