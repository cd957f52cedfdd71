"""What a replica knows of the units that were exposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seatrial.store import Store
from seatrial_serving import live as live_module
from seatrial_serving.live import Memory
from seatrial_serving.sticky import Sticky
from seatrial_serving.table import Table
from tests.serving.front import ask, service
from tests.serving.test_table import TRAFFIC, reweighted


class Pages:
    """Gives units two at a time, as a store would; may be away."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = list(pairs)
        self.asked: list[tuple[str, int]] = []
        self.is_away = False

    def sticky(self, trial_id: str, after: int = 0) -> tuple[list[tuple[str, str]], int]:
        if self.is_away:
            raise ConnectionError("away")
        self.asked.append((trial_id, after))
        found = self.pairs[after : after + 2]
        return found, after + len(found)


def other_arm(unit: str) -> str:
    arm = reweighted(0.1).route("svc", unit, "r", {"6", "7"}).arm
    return {"champion": "challenger", "challenger": "champion"}[arm]


async def test_the_units_of_the_store_and_the_replicas_own_stay() -> None:
    app, _, live = service()
    store = Pages(*((f"u{i}", other_arm(f"u{i}")) for i in range(5)))
    sticky = Sticky(live, lambda: store)
    sticky.refresh()
    assert store.asked == [], "a trial whose weights never changed needs none"
    live.table = reweighted(0.1)
    sticky.refresh()
    for unit, arm in store.pairs:
        assert (await ask(app, user=unit)).headers["x-seatrial-arm"] == arm
    first = (await ask(app, user="new")).headers["x-seatrial-arm"]
    assert live.sticky.arms["new"] == first
    live.table = reweighted(0.999 if first == "champion" else 0.001)
    store.is_away = True
    with pytest.raises(ConnectionError):
        sticky.refresh()
    assert (await ask(app, user="new")).headers["x-seatrial-arm"] == first
    assert (await ask(app)).status_code == 200, "nobody waits for the store"
    assert "new" in live.sticky.arms
    assert len(live.sticky.arms) == 6, "requests without a unit are not kept"


async def test_what_the_store_says_of_a_unit_takes_the_place_of_what_the_hash_said_before() -> None:
    app, _, live = service()
    live.table = reweighted(0.1)
    store = Pages()
    sticky = Sticky(live, lambda: store)
    sticky.refresh()
    await ask(app, user="early")
    store.pairs.append(("early", other_arm("early")))
    sticky.refresh()
    assert (await ask(app, user="early")).headers["x-seatrial-arm"] == other_arm("early")


async def test_another_trial_starts_without_memories() -> None:
    app, _, live = service()
    live.table = reweighted(0.1)
    store = Pages(("u1", "champion"), ("u2", "champion"), ("u3", "challenger"))
    sticky = Sticky(live, lambda: store)
    sticky.refresh()
    assert len(live.sticky.arms) == 3
    trial = {**TRAFFIC["trial"], "id": "svc-4", "bucket_version": 1}
    live.table = Table.from_json("svc", "r3", {**TRAFFIC, "trial": trial})
    moved = other_arm("u9")
    live.sticky.keep("u9", moved)
    assert (await ask(app, user="u9")).headers["x-seatrial-arm"] != moved, "that was another trial"
    store.pairs = []
    sticky.refresh()
    assert (live.sticky.trial, live.sticky.arms) == ("svc-4", {})
    assert store.asked[-1] == ("svc-4", 0)


def test_memory_is_bounded_and_the_first_arm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MOST_UNITS", 3)
    memory = Memory("t")
    for index in range(5):
        memory.keep(f"u{index}", "champion")
    memory.keep("u1", "challenger")
    assert memory.arms == {f"u{index}": "champion" for index in range(3)}
    memory.learn("u9", "challenger")
    memory.learn("u2", "challenger")
    assert memory.arms == {"u0": "champion", "u1": "champion", "u2": "challenger"}


def test_the_real_store_can_be_read(tmp_path: Path) -> None:
    store: Any = Store(f"sqlite:///{tmp_path / 'store.db'}")
    store.migrate()
    _, _, live = service()
    live.table = reweighted(0.1)
    Sticky(live, lambda: store).refresh()
    assert (live.sticky.trial, live.sticky.arms) == ("svc-3", {})
    store.close()
