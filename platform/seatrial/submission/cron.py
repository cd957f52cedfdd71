"""Five-field schedules in UTC, as `crontab(5)` describes them.

A day matches when its month and both day fields do; when neither day field begins with `*`, one is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from seatrial.errors import UserError

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Field → first value, last value, names.
FIELDS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "minute": (0, 59, ()),
    "hour": (0, 23, ()),
    "day of month": (1, 31, ()),
    "month": (1, 12, MONTHS),
    "day of week": (0, 7, DAYS),
}
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
PART = re.compile(r"^(\*|\w+)(?:-(\w+))?(?:/(\d+))?$")
LONGEST_CHARS = 128  # as the store keeps
LONGEST_DAYS = 366 * 9  # 29 February comes after 8 years when a century is left out


@dataclass(frozen=True)
class Cron:
    """A parsed expression."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    is_either_day: bool
    """Both day fields are restricted: one that matches is enough."""

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Parse `minute hour day-of-month month day-of-week`, or a nickname such as `@daily`.

        Raises:
            UserError: naming the field, or a day that never comes.
        """
        words = NICKNAMES.get(text.strip().lower(), text).split()
        if len(text) > LONGEST_CHARS:
            raise UserError(
                f"--cron: {text[:40]}…: give at most {LONGEST_CHARS} characters: ranges and steps"
            )
        if len(words) != len(FIELDS):
            raise UserError(f"--cron: {text}: give five fields (minute hour day month weekday), or @daily")
        found = [_values(text, name, word) for name, word in zip(FIELDS, words, strict=True)]
        minutes, hours, days, months, weekdays = found
        either = not words[2].startswith("*") and not words[4].startswith("*")
        folded = frozenset(day % 7 for day in weekdays)
        ordered = (tuple(sorted(minutes)), tuple(sorted(hours)))
        made = cls(text, *ordered, frozenset(days), frozenset(months), folded, either)
        if next(made._days(date(2024, 1, 1), 1), None) is None:
            raise UserError(f"--cron: {text}: such a day never comes: change day and month")
        return made

    def after(self, moment: float) -> float:
        """The first time of the schedule later than ``moment``; seconds since the epoch."""
        start = datetime.fromtimestamp(moment, UTC)
        for day in self._days(start.date(), 1):
            for at in self._times(day):
                if at.timestamp() > moment:
                    return at.timestamp()
        raise AssertionError(self.text)  # parse() saw to that

    def latest(self, moment: float) -> float:
        """The last time of the schedule at or before ``moment``."""
        start = datetime.fromtimestamp(moment, UTC)
        for day in self._days(start.date(), -1):
            for at in reversed(list(self._times(day))):
                if at.timestamp() <= moment:
                    return at.timestamp()
        raise AssertionError(self.text)

    def _days(self, first: date, step: int) -> Iterator[date]:
        return (
            day
            for day in (first + timedelta(days=step * count) for count in range(LONGEST_DAYS))
            if self._matches(day)
        )

    def _times(self, day: date) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                yield datetime.combine(day, time(hour, minute), UTC)

    def _matches(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        fits = (day.day in self.days, day.isoweekday() % 7 in self.weekdays)
        return any(fits) if self.is_either_day else all(fits)


def _values(text: str, name: str, word: str) -> set[int]:
    found: set[int] = set()
    for part in word.lower().split(","):
        found |= _range(text, name, part)
    return found


def _range(text: str, name: str, part: str) -> set[int]:
    first, last, names = FIELDS[name]
    match = PART.match(part)
    if match is None:
        raise _wrong(text, name, part)
    start, end, step = match.groups()
    if start == "*":
        low, high = first, last
        if end is not None:
            raise _wrong(text, name, part)
    else:
        low = _number(text, name, start, names)
        high = _number(text, name, end, names) if end else (last if step else low)
    every = int(step) if step else 1
    if low > high or every < 1:
        raise _wrong(text, name, part)
    return set(range(low, high + 1, every))


def _number(text: str, name: str, word: str, names: tuple[str, ...]) -> int:
    first, last, _ = FIELDS[name]
    if word in names:
        return names.index(word) + first
    if not word.isascii() or not word.isdigit() or not first <= int(word) <= last:
        raise _wrong(text, name, word)
    return int(word)


def _wrong(text: str, name: str, part: str) -> UserError:
    first, last, _ = FIELDS[name]
    return UserError(f"--cron: {text}: {name}: {part}: give {first}-{last}, `*`, `a-b`, `a,b` or `*/n`")
