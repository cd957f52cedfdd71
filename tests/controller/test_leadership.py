"""Who acts, on a real store."""

from __future__ import annotations

from pathlib import Path

from seatrial.controller.leadership import LEASE_S, Leadership
from seatrial.store import Store


def test_a_lease_is_renewed_for_whoever_holds_it_and_taken_for_nobody(tmp_path: Path):
    now = 1000.0
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    store.migrate()
    first = Leadership(store, clock=lambda: now, holder="first")
    second = Leadership(store, clock=lambda: now, holder="second")
    first.renew()
    assert second.leader() == "second"
    assert first.leader() == "second"
    for _ in range(10):  # beside a side effect that takes several leases' time
        now += LEASE_S / 2
        second.renew()
        first.renew()
        assert first.leader() == "second"
    now += LEASE_S
    first.renew()
    assert first.leader() == "first"
    second.renew()
    assert second.leader() == "first"
    first.resign()
    assert second.is_held()
    store.close()


def test_two_controllers_of_one_process_have_names_of_their_own(tmp_path: Path):
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    names = {Leadership(store, clock=lambda: 0.0).holder for _ in range(2)}
    assert len(names) == 2
