"""Five-field schedules: exact times in UTC, at month ends, in leap years and around changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import UserError
from seatrial.submission.cron import Cron


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("cron", "now", "expected"),
    [
        ("* * * * *", "2026-11-24 09:30:00", "2026-11-24 09:31"),
        ("* * * * *", "2026-11-24 09:30:59", "2026-11-24 09:31"),
        ("0 3 * * *", "2026-11-24 03:00", "2026-11-25 03:00"),
        ("*/15 9-10 * * *", "2026-11-24 10:45", "2026-11-25 09:00"),
        ("5-59/20 * * * *", "2026-11-24 09:26", "2026-11-24 09:45"),
        ("7/20 * * * *", "2026-11-24 09:08", "2026-11-24 09:27"),
        ("0 0 31 * *", "2026-11-24 00:00", "2026-12-31 00:00"),
        ("0 0 31 * *", "2027-01-31 00:00", "2027-03-31 00:00"),  # February has none
        ("59 23 28-31 2 *", "2026-02-28 23:59", "2027-02-28 23:59"),
        ("0 0 29 2 *", "2026-11-24 00:00", "2028-02-29 00:00"),
        ("0 0 29 2 *", "2096-03-01 00:00", "2104-02-29 00:00"),  # 2100 is no leap year
        ("0 12 * * mon-fri", "2026-11-27 12:00", "2026-11-30 12:00"),
        ("0 12 * * 7", "2026-11-24 12:00", "2026-11-29 12:00"),
        ("0 12 * * 5-7", "2026-11-24 12:00", "2026-11-27 12:00"),
        ("0 0 13 * fri", "2026-11-24 00:00", "2026-11-27 00:00"),  # either day is enough
        ("0 0 13 * *", "2026-11-24 00:00", "2026-12-13 00:00"),
        ("0 0 */2 * mon", "2026-11-24 00:00", "2026-12-07 00:00"),  # `*/2` begins with `*`: both must match
        ("0 0 1 jan,JUL *", "2026-11-24 00:00", "2027-01-01 00:00"),
        ("@monthly", "2026-12-01 00:00", "2027-01-01 00:00"),
        # Berlin's clocks go forward on 2026-03-29 and back on 2026-10-25; UTC leaves out and repeats nothing.
        ("30 1 * * *", "2026-03-29 00:00", "2026-03-29 01:30"),
        ("30 2 * * *", "2026-03-28 02:30", "2026-03-29 02:30"),
        ("30 0 * * *", "2026-10-25 00:30", "2026-10-26 00:30"),
    ],
)
def test_the_next_time(cron: str, now: str, expected: str) -> None:
    assert shown(Cron.parse(cron).after(at(now))) == expected


def test_every_hour_of_the_days_on_which_clocks_change_comes_once() -> None:
    cron = Cron.parse("0 * * * *")
    for day in ("2026-03-29", "2026-10-25"):
        moment, times = at(f"{day} 00:00") - 1, []
        for _ in range(24):
            moment = cron.after(moment)
            times.append(shown(moment))
        assert times == [f"{day} {hour:02}:00" for hour in range(24)]


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("60 * * * *", "minute: 60"),
        ("* 24 * * *", "hour: 24"),
        ("* * 0 * *", "day of month: 0"),
        ("* * * 13 *", "month: 13"),
        ("* * * * 8", "day of week: 8"),
        ("*/0 * * * *", r"minute: \*/0"),
        ("9-5 * * * *", "minute: 9-5"),
        ("* * * foo *", "month: foo"),
        ("*-5 * * * *", r"minute: \*-5"),
        ("1,,2 * * * *", "minute: "),
        ("* * * *", "give five fields"),
        ("@sometimes", "give five fields"),
        ("0 0 31 2 *", "such a day never comes"),
        ("0 0 30 2 *", "such a day never comes"),
    ],
)
def test_a_wrong_expression_names_the_field(cron: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Cron.parse(cron)


@given(
    st.sampled_from(["*/7 * * * *", "13 4 31 * *", "0 0 29 2 *", "5 5 1 * 3", "59 23 * 12 sun"]),
    st.integers(1_600_000_000, 2_200_000_000),
)
def test_the_latest_time_is_the_one_before_the_next(cron: str, now: int) -> None:
    made = Cron.parse(cron)
    latest, following = made.latest(now), made.after(now)
    assert latest <= now < following
    assert made.after(latest) == following
    assert made.latest(following - 1) == latest
