"""`python -m seatrial.controller`: the loop and its API, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from seatrial.config.addresses import Addresses
from seatrial.config.secret import CONTROLLER_TOKEN, WEBHOOK_SECRET, secret
from seatrial.controller import webhooks
from seatrial.controller.api import build
from seatrial.controller.auth import Access
from seatrial.controller.login import Gate
from seatrial.controller.loop import STALLED_S, Controller
from seatrial.controller.sessions import Sessions
from seatrial.controller.webhooks import Receiver
from seatrial.errors import SeatrialError, UserError
from seatrial.monitoring import logs
from seatrial.submission.dispatcher import Dispatcher

POLL_S = 2.0
MOST_POLL_S = STALLED_S / 5  # a controller that has not looked for STALLED_S is taken for one that hangs
PORT = 8787
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = "FORWARDED_ALLOW_IPS"  # uvicorn's own name for it


def main() -> None:
    """Run until told to stop. Settings come from the environment; see `Addresses`.

    Raises:
        UserError: a setting makes no sense, or the port is taken.
        SeatrialError: the loop has ended, which it never should.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    addresses = Addresses.resolve()
    poll_s = poll_interval_s(os.environ.get("SEATRIAL_POLL_S"))
    host, port = bind_address(addresses.controller_url, os.environ.get("SEATRIAL_CONTROLLER_BIND"))
    access = access_of(host, secret(CONTROLLER_TOKEN, os.environ))
    proxies = trusted_proxies(os.environ.get(PROXIES, ""))
    hook_secret = secret(WEBHOOK_SECRET, os.environ)
    # Taken before anything is done: a second start by mistake ends here.
    listening = listen(host, port)
    logs.configure("controller")
    controller = Controller.of(addresses)
    receiver = Receiver(hook_secret, controller.wake) if hook_secret else None
    api, is_https = build(controller, receiver), addresses.controller_url.startswith("https:")
    gate = Gate(api, access, Sessions(controller.store), is_https=is_https)
    server = uvicorn.Server(server_config(gate, proxies))
    stop = threading.Event()

    def loop() -> None:
        try:
            controller.run(stop, poll_s=poll_s)
        finally:
            server.should_exit = True

    def leads() -> bool:
        # A loop that hangs must lose the lease, so nobody else renews it for it.
        at = controller.report.at
        return at is not None and controller.clock() - at <= STALLED_S and controller.leadership.is_held()

    dispatcher = Dispatcher.of(addresses, leads=leads)
    threads = [
        threading.Thread(target=loop, name="reconcile"),
        threading.Thread(target=controller.keep_lease, args=(stop,), name="lease"),
        threading.Thread(target=dispatcher.run, args=(stop,), name="jobs"),
    ]
    if hook_secret:
        hook_url = os.environ.get("SEATRIAL_WEBHOOK_URL") or f"{addresses.controller_url}{webhooks.PATH}"
        keep = partial(webhooks.keep_registered, stop, hook_url, hook_secret, uri=addresses.mlflow_uri)
        threads.append(threading.Thread(target=keep, name="webhook"))
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn takes these while it serves, and raises them once more when it has ended.
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    for thread in threads:
        thread.start()
    try:
        server.run(sockets=[listening])
        if not threads[0].is_alive():
            raise SeatrialError("the loop has ended: see the traceback above")
    finally:
        _end(controller, stop, threads)


def _end(controller: Controller, stop: threading.Event, threads: list[threading.Thread]) -> None:
    stop.set()
    controller.wake()
    for thread in threads:
        thread.join(timeout=30)
    if not any(thread.is_alive() for thread in threads):
        with suppress(SeatrialError):  # the lease runs out by itself
            controller.leadership.resign()


def bind_address(url: str, bind: str | None) -> tuple[str, int]:
    """Host and port to listen on: those of ``url`` on loopback, or ``bind``, a host with or without port.

    Raises:
        UserError: ``bind`` is no address.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or LOOPBACK[0], parts.port or PORT
    if not bind:
        return (host if host in LOOPBACK else LOOPBACK[0]), port
    try:
        wanted = urlsplit(f"//{bind}")
        if wanted.hostname is None or wanted.netloc != bind:
            raise ValueError
        return wanted.hostname, wanted.port or port
    except ValueError as error:
        raise UserError(f"SEATRIAL_CONTROLLER_BIND: {bind}: give an address such as 0.0.0.0:8787") from error


def access_of(host: str, token: str | None) -> Access:
    """Who may speak to a controller that listens on ``host``.

    Raises:
        UserError: others than this machine reach it, and there is no token.
    """
    if token is None and host not in LOOPBACK and not _is_loopback(host):
        raise UserError(
            f"{CONTROLLER_TOKEN}: not set, and SEATRIAL_CONTROLLER_BIND lets other machines reach {host}: "
            f"set it or {CONTROLLER_TOKEN}_FILE, such as to what `openssl rand -hex 32` prints"
        )
    return Access.of(token)


def trusted_proxies(text: str) -> str:
    """``text``, the proxies whose word on who their client is counts; empty trusts none.

    Raises:
        UserError: it names something that is no address.
    """
    given = [part.strip() for part in text.split(",") if part.strip()]
    for part in given:
        try:
            if text.strip() != "*":
                ip_network(part)
        except ValueError as error:
            raise UserError(
                f"{PROXIES}: {part}: give addresses or networks of proxies, such as 10.0.0.0/8"
            ) from error
    return ",".join(given)


def server_config(app: ASGIApp, proxies: str) -> uvicorn.Config:
    """How ``app`` is served. `X-Forwarded-For` counts from ``proxies`` alone, also where uvicorn would
    trust all of loopback."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserError: the port is taken, or the host is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"SEATRIAL_CONTROLLER_URL: {host}:{port}: {error.strerror}: "
            "end the controller that runs there, or give another port"
        ) from error


def poll_interval_s(text: str | None) -> float:
    """Seconds between two passes.

    Raises:
        UserError: no number, or not within the limits.
    """
    try:
        value = float(text) if text else POLL_S
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= MOST_POLL_S:
        raise UserError(f"SEATRIAL_POLL_S: {text}: give seconds between 0.05 and {MOST_POLL_S:g}")
    return value


if __name__ == "__main__":
    try:
        main()
    except SeatrialError as error:
        print(f"seatrial: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
