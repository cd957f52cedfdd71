"""A write in the background: tried again while storage is away, given up when it never can succeed."""

from __future__ import annotations

import errno
import threading
import time
from types import SimpleNamespace

import pytest

from seatrial.errors import UserError
from seatrial_jobs.checkpoints import writer
from seatrial_jobs.checkpoints.writer import Writer
from seatrial_jobs.storage import may_pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_PAUSE_S", 0.01)


def test_a_write_does_not_hold_up_whoever_started_it():
    allowed, done = threading.Event(), threading.Event()

    def write() -> None:
        allowed.wait(5)
        done.set()

    background = Writer()
    background.start(write)
    assert not background.join(0)
    assert not done.is_set()
    allowed.set()
    assert background.join(5)
    assert done.is_set()


def test_a_second_write_waits_for_the_first():
    order: list[str] = []

    def slow() -> None:
        time.sleep(0.1)
        order.append("first")

    background = Writer()
    background.start(slow)
    background.start(lambda: order.append("second"))
    assert background.join(5)
    assert order == ["first", "second"]


def test_a_storage_that_comes_back_gets_the_same_write(monkeypatch: pytest.MonkeyPatch):
    attempts, pauses = 0, list[float]()
    seen_struggling = threading.Event()
    monkeypatch.setattr(writer, "time", SimpleNamespace(sleep=pauses.append))

    def write() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise OSError("connection refused")
        seen_struggling.wait(5)

    background = Writer()
    background.start(write)
    while not background.struggling:
        time.sleep(0.001)
    seen_struggling.set()
    assert background.join(5)
    assert attempts == 4
    assert pauses == [0.01, 0.02, 0.04], "the pauses grow"
    assert not background.struggling


def test_what_never_can_succeed_is_raised_once_where_it_is_waited_for():
    def write() -> None:
        raise PermissionError(errno.EACCES, "denied")

    background = Writer()
    background.start(write)
    with pytest.raises(PermissionError, match="denied"):
        background.join(5)
    assert background.join(5)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.ENOSPC, "no space left on device"), True),
        (OSError("AWS Error NETWORK_CONNECTION during PutObject: couldn't connect"), True),
        (FileNotFoundError(errno.ENOENT, "the mount is away"), True),
        (OSError("AWS Error ACCESS_DENIED during PutObject: HTTP status 403"), False),
        (OSError(errno.EROFS, "read-only file system"), False),
        (UserError("run.storage: x: mend it"), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_what_time_may_mend_is_tried_again(error: Exception, passes: bool):
    assert may_pass(error) is passes
