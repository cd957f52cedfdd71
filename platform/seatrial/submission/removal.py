"""Delete a service: mark it, and watch the controller take it away."""

from __future__ import annotations

import time
from collections.abc import Callable

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError, UserError
from seatrial.submission import controller
from seatrial.submission.deploy import PATIENCE_S, POLL_S


def mark(name: str, addresses: Addresses, *, now: float) -> None:
    """Ask the controller to take the service away. Asking again changes nothing.

    Raises:
        UserError: it is not deployed.
        RetryableError: the store does not answer.
    """
    from seatrial.store import Store

    store = Store(addresses.store_url)
    try:
        store.migrate()
        if not store.ask_delete(name, now=now):
            known = ", ".join(store.services()) or "none"
            raise UserError(f"SERVICE: {name}: not deployed (deployed: {known}): nothing to delete")
    finally:
        store.close()


def await_gone(name: str, addresses: Addresses, timeout_s: float, say: Callable[[str], None]) -> None:
    """Watch until the service is gone; ``say`` hears each new message of the controller.

    Raises:
        RetryableError: not gone in time, or the controller is away; the deletion goes on.
    """
    began = heard = time.monotonic()
    last = ""
    while time.monotonic() - began < timeout_s:
        try:
            body = controller.status(addresses)
            heard = time.monotonic()
        except RetryableError:
            if time.monotonic() - heard > PATIENCE_S:
                raise
            time.sleep(POLL_S)
            continue
        found = next((each for each in body["services"] if each["name"] == name), None)
        if found is None:
            return
        if found["state"] == "deleting" and found["message"] != last:
            last = found["message"]
            say(f"deleting: {last}")
        time.sleep(POLL_S)
    why = f" ({body['error']})" if body["error"] else ""
    raise RetryableError(f"{name}: not gone after {timeout_s:.0f} s{why}: watch `seatrial status`")
