"""How each part of the stack is, and why when it is not well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seatrial.config import secret
from seatrial.config.addresses import Addresses
from seatrial.monitoring.bearer import bearer, token_source
from seatrial.monitoring.logs import complaint, tail
from seatrial.monitoring.probe import Probe
from seatrial.stack import processes, state

Health = Literal["running", "ill", "not answering", "ended", "away"]


@dataclass(frozen=True)
class PartStatus:
    """One part: what it is called, where it answers, how it is, and the cause when it is not well.

    `ill` answers, but says itself that something is wrong; `not answering` and `ended` are processes of the
    local stack; `away` is anything else that does not answer.
    """

    name: str
    url: str
    health: Health
    cause: str = ""
    log: str = ""
    pid: int | None = None


def read(addresses: Addresses) -> list[PartStatus]:
    """Ask every part. Parts that `seatrial up` started are looked at as processes, too.

    Raises:
        UserError: the controller's token is none, see :func:`seatrial.config.secret.secret`.
    """
    found = state.read(addresses.home)
    members = {member.name: member for member in found.members} if found else {}
    refused = f"the token is refused: check {token_source(addresses)}"
    return [
        _part(name, probe, url, members.get(name), refused)
        for name, (probe, url) in _probes(addresses).items()
    ]


def _probes(addresses: Addresses) -> dict[str, tuple[Probe, str]]:
    token = bearer(addresses)
    return {
        "mlflow": (Probe(f"{addresses.mlflow_uri}/health"), addresses.mlflow_uri),
        "ray": (Probe(f"{addresses.ray_dashboard}/api/jobs/", token), addresses.ray_dashboard),
        # Without its token a controller that has one says only whether it is well.
        "controller": (
            Probe(f"{addresses.controller_url}/healthz", secret.bearer(os.environ)),
            addresses.controller_url,
        ),
    }


def _part(name: str, probe: Probe, url: str, member: state.Member | None, refused: str) -> PartStatus:
    if member is not None and member.url != url:
        member = None  # the environment names another one than the local stack's
    if member is not None and processes.alive(member) is None:
        return PartStatus(name, url, "ended", _why(member), member.log)
    log, pid = (member.log, member.pid) if member else ("", None)
    answer = probe.ask()
    if answer.trouble is None and answer.error is None:
        return PartStatus(name, url, "running", log=log, pid=pid)
    if answer.status is not None:
        why = refused if answer.status in (401, 403) else answer.error or answer.trouble or ""
        return PartStatus(name, url, "ill", why, log, pid)
    if member is None:
        return PartStatus(name, url, "away", answer.trouble or "")
    said = _errors(tail(Path(member.log)))
    return PartStatus(name, url, "not answering", f"{answer.trouble}{said}", log, pid)


def _why(member: state.Member) -> str:
    said = _errors(tail(Path(member.log)))
    return f"process {member.pid} is gone{said or ', and its log has no error: was it killed?'}"


def _errors(lines: Sequence[str]) -> str:
    said = complaint(lines)
    return f"; last error in its log: {said}" if said else ""
