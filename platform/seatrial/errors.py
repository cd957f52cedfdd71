"""What can go wrong, sorted by who can mend it.

A :class:`UserError` is mended by the person at the keyboard, so it is printed as one line and never as a
traceback. A :class:`RetryableError` mends itself when the same call is made again later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SeatrialError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UserError(SeatrialError):
    """Bad input. The message is one line: the field, the value and the fix."""

    exit_code = 2


class RetryableError(SeatrialError):
    """A dependency did not answer this time; the same call may succeed later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Problem:
    """One bad field of a configuration file. ``line`` counts from 1."""

    file: str
    line: int
    field: str
    value: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.value}: {self.fix}"


class ConfigError(UserError):
    """Every bad field of one file, found in one reading."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
