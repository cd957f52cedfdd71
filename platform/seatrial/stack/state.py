"""`stack.json`: what `seatrial up` started, so that the other commands find it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from seatrial.config.addresses import STATE_NAME, Addresses
from seatrial.errors import UserError


@dataclass(frozen=True)
class Member:
    """One started part. ``boot`` and ``started`` (clock ticks, see :mod:`seatrial.stack.proc`) name its
    process for good together with the pid, which alone is used again."""

    name: str
    pid: int
    boot: str
    started: int
    log: str
    url: str


@dataclass(frozen=True)
class State:
    """One stack. ``mark`` is in the environment of everything it started."""

    mark: str
    phase: Literal["starting", "up"]
    owner: Member
    """The `seatrial up` that starts it."""
    folder: str
    """Ray's folder for sockets and session logs; deleted with the stack."""
    addresses: Addresses
    members: tuple[Member, ...] = ()


def path_of(home: Path) -> Path:
    """Where the state of the stack of ``home`` is kept."""
    return home / STATE_NAME


def read(home: Path) -> State | None:
    """The recorded stack, None when there is none.

    Raises:
        UserError: the file is not one of ours.
    """
    path = path_of(home)
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return State(
            mark=found["mark"],
            phase=found["phase"],
            owner=Member(**found["owner"]),
            folder=found["folder"],
            addresses=Addresses.of(found["addresses"]),
            members=tuple(Member(**member) for member in found["members"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a state file of `seatrial up` ({error!r}): delete it") from error


def write(home: Path, state: State) -> None:
    """Replace the file in one step; only its owner can read it."""
    values: Mapping[str, Any] = {**asdict(state), "addresses": state.addresses.values()}
    write_private(path_of(home), json.dumps(values, indent=2) + "\n")


def forget(home: Path) -> None:
    """Delete the file."""
    path_of(home).unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)
