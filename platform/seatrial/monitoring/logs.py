"""How Seatrial's own processes log, and how the cause is found in the log of a process that ended."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = "seatrial"
TAIL_BYTES = 64 * 1024

# `ValueError: …`, `ray.exceptions.RayTaskError(X): …`: the line that ends a traceback.
EXCEPTION = re.compile(
    r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)(?:\(\w+\))?(?::\s|$)"
)
ERROR_LEVEL = re.compile(r"\b(?:ERROR|CRITICAL|FATAL)\b|^E\d{4}\s|\s[EF]\s+\d+\s|^error:|^Error:|^seatrial: ")
# What a terminal obeys (ECMA-48): CSI, then OSC and other strings with their ends, then what else ESC begins.
ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Controls but the tab, and halves of pairs, which no encoding takes.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `at` (UTC), `level`, `part`, `message`, and `traceback` where there is one."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {"at": at, "level": record.levelname, "part": self._part, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure(part: str) -> logging.Logger:
    """Send the `seatrial` loggers of this process to standard error, and return their root.

    `SEATRIAL_LOG_LEVEL` is the level (INFO), `SEATRIAL_LOG_FORMAT=json` writes JSON lines. Calling it again
    changes nothing but the part's name.
    """
    logger = logging.getLogger(ROOT)
    handler = logging.StreamHandler(sys.stderr)
    if os.environ.get("SEATRIAL_LOG_FORMAT") == "json":
        handler.setFormatter(JsonFormatter(part))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {part}: %(message)s"))
    logger.handlers = [handler]
    level = os.environ.get("SEATRIAL_LOG_LEVEL", "INFO").upper()
    logger.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
    logger.propagate = False
    return logger


def plain(line: str) -> str:
    """The line without what a terminal would obey, so that a log says what it says and does nothing.

    Of a line that was written over with carriage returns, the last is left.
    """
    shown = ESCAPE.sub("", line).rstrip("\r").rpartition("\r")[2]
    return UNPRINTABLE.sub("", shown)


def tail(path: Path, lines: int = 40) -> list[str]:
    """The last lines of a log file without colours; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [plain(line).rstrip() for line in text.splitlines()][-lines:]


def cause(lines: Sequence[str]) -> str | None:
    """The line that most likely says why a process ended: its last complaint, else the last line that says
    anything. None when nothing was said."""
    return complaint(lines) or _last(_said(lines))


def complaint(lines: Sequence[str]) -> str | None:
    """The last exception, else the last error; None where there is neither."""
    said = _said(lines)
    for matches in (EXCEPTION.search, ERROR_LEVEL.search):
        found = _last(line for line in said if matches(line))
        if found is not None:
            return found
    return None


def _said(lines: Sequence[str]) -> list[str]:
    said = [plain(line).strip() for line in lines]
    return [line for line in said if line and not line.startswith("::seatrial:: ")]


def _last(lines: Iterable[str]) -> str | None:
    found = None
    for line in lines:
        found = line
    return found
