"""What names a process for good, and which files it holds, as Linux's /proc says.

A start in seconds since the epoch would not do: it moves whenever the clock is set (NTP after boot, a virtual
machine that resumes). Ticks since boot do not move, and mean the same until pid 1 ends.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")
START_FIELD = 22 - 3  # `starttime` of proc_pid_stat(5), counted from the field after the program's name


def boot() -> str:
    """Names one life of the kernel and of pid 1, so that containers are told apart, too."""
    kernel = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{kernel} {started(1)}"


def started(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process; None when there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself hold any of them.
    return int(text.rpartition(")")[2].split()[START_FIELD])


def open_files(pid: int) -> list[str]:
    """Paths that the process holds open, deleted ones included; none where we may not look."""
    found = []
    with contextlib.suppress(OSError), os.scandir(PROC / str(pid) / "fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # closed in the meantime
                found.append(os.readlink(entry.path))  # noqa: PTH115  a socket's name is no path
    return found
