"""`python -m seatrial.controller`: the loop and its API, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import sys
import threading
from urllib.parse import urlsplit

import uvicorn

from seatrial.config.addresses import Addresses
from seatrial.controller.api import build
from seatrial.controller.loop import Controller, wait_for_store
from seatrial.errors import SeatrialError, UserError
from seatrial.monitoring import logs

POLL_S = 2.0


def main() -> None:
    """Run until told to stop. Settings come from the environment; see `Addresses`."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    addresses = Addresses.resolve()
    poll_s = poll_interval_s(os.environ.get("SEATRIAL_POLL_S"))
    logs.configure("controller")
    controller = Controller.of(addresses)
    stop = threading.Event()
    loop = threading.Thread(target=_run, args=(controller, stop, poll_s), name="reconcile")
    parts = urlsplit(addresses.controller_url)
    config = uvicorn.Config(
        build(controller),
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 8787,
        log_level="warning",
        access_log=False,
    )
    loop.start()
    try:
        uvicorn.Server(config).run()
    finally:
        stop.set()
        loop.join(timeout=30)


def poll_interval_s(text: str | None) -> float:
    """Seconds between two passes.

    Raises:
        UserError: not a positive number.
    """
    try:
        value = float(text) if text else POLL_S
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= 3600:
        raise UserError(f"SEATRIAL_POLL_S: {text}: give seconds between 0.05 and 3600")
    return value


def _run(controller: Controller, stop: threading.Event, poll_s: float) -> None:
    wait_for_store(controller.store, stop)
    controller.run(stop, poll_s=poll_s)


if __name__ == "__main__":
    try:
        main()
    except SeatrialError as error:
        print(f"seatrial: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
