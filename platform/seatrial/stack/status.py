"""How each part of the stack is, and why when it is not well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seatrial.config.addresses import Addresses
from seatrial.monitoring.logs import cause, tail
from seatrial.monitoring.probe import Probe, bearer
from seatrial.stack import processes, state


@dataclass(frozen=True)
class PartStatus:
    """One part: what it is called, where it answers, how it is, and the cause when it is not well."""

    name: str
    url: str
    health: Literal["running", "not answering", "ended", "away"]
    cause: str = ""
    log: str = ""
    pid: int | None = None


def read(addresses: Addresses) -> list[PartStatus]:
    """Ask every part. Parts that `seatrial up` started are looked at as processes, too."""
    found = state.read(addresses.home)
    members = {member.name: member for member in found.members} if found else {}
    return [_part(name, probes, members.get(name)) for name, probes in _probes(addresses).items()]


def _probes(addresses: Addresses) -> dict[str, tuple[Probe, str]]:
    token = bearer(addresses)
    return {
        "mlflow": (Probe(f"{addresses.mlflow_uri}/health"), addresses.mlflow_uri),
        "ray": (Probe(f"{addresses.ray_dashboard}/api/jobs/", token), addresses.ray_dashboard),
        "controller": (Probe(f"{addresses.controller_url}/healthz"), addresses.controller_url),
    }


def _part(name: str, asked: tuple[Probe, str], member: state.Member | None) -> PartStatus:
    probe, url = asked
    if member is None or member.url != url:
        trouble = probe.trouble()
        return PartStatus(name, url, "away" if trouble else "running", trouble or "")
    if processes.alive(member) is None:
        return PartStatus(name, url, "ended", _why(member), member.log)
    trouble = probe.trouble()
    if trouble is None:
        return PartStatus(name, url, "running", log=member.log, pid=member.pid)
    said = _errors(tail(Path(member.log)))
    return PartStatus(name, url, "not answering", f"{trouble}{said}", member.log, member.pid)


def _why(member: state.Member) -> str:
    lines = tail(Path(member.log))
    said = cause(lines)
    return (
        f"process {member.pid} is gone; last in its log: {said}" if said else f"process {member.pid} is gone"
    )


def _errors(lines: Sequence[str]) -> str:
    said = cause(lines)
    return f"; last in its log: {said}" if said else ""
