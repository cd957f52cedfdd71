"""Which ports a stack takes, and who holds one that is taken."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import psutil

from seatrial.errors import UserError

LOOPBACK = "127.0.0.1"
# Below the range from which Linux takes the local ports of outgoing connections (32768-60999), so that a
# port chosen now is still free when Ray Serve binds it at the first deployment.
INNER_PORTS = range(20000, 30000)


@dataclass(frozen=True)
class Ports:
    """The ports that people see; the fields are the flags of `seatrial up` without their `--` and `-port`."""

    mlflow: int = 5000
    ray: int = 6379
    dashboard: int = 8265
    serve: int = 8000
    controller: int = 8787


def require_free(ports: Ports) -> None:
    """Check every port before anything is started.

    Raises:
        UserError: one line for each port that is taken or given twice, with its holder and its flag.
    """
    flags: Mapping[str, int] = {f"--{name}-port": port for name, port in asdict(ports).items()}
    problems = []
    seen: dict[int, str] = {}
    for flag, port in flags.items():
        if port in seen:
            problems.append(f"{flag}: {port}: {seen[port]} has the same port: give another one")
        elif not is_free(port):
            problems.append(
                f"{flag}: {port}: the port is in use{holder(port)}: end that or give {flag} another"
            )
        seen[port] = flag
    if problems:
        raise UserError("\n".join(problems))


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without this, connections of a stack that ended a moment ago (TIME_WAIT) look like a holder.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """` by NAME (pid N)` for the process that listens on the port, where the system tells."""
    try:
        connections = psutil.net_connections(kind="inet")
    except (psutil.AccessDenied, OSError):
        return ""
    for connection in connections:
        is_listener = connection.status == psutil.CONN_LISTEN
        if is_listener and connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline()) or "a process"
            except psutil.Error:
                command = "a process"
            shown = command if len(command) <= 60 else command[:57] + "..."
            return f" by `{shown}` (pid {connection.pid})"
    return ""


def inner(count: int, taken: Ports) -> list[int]:
    """Distinct free ports that nobody needs to know."""
    found: list[int] = []
    chooser = random.SystemRandom()
    while len(found) < count:
        port = chooser.choice(INNER_PORTS)
        if port not in found and port not in asdict(taken).values() and is_free(port):
            found.append(port)
    return found
