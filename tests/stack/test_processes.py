"""Which processes belong to a stack, and that all of them end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from seatrial.config.addresses import Addresses
from seatrial.stack import processes
from seatrial.stack.state import Member, State

SLEEP = "import time; time.sleep(300)"
# A parent that starts a child in a session of its own, and one that ignores SIGTERM and has no mark.
FAMILY = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
env = {{k: v for k, v in os.environ.items() if k != "SEATRIAL_STACK_ID"}}
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); " + {SLEEP!r}
subprocess.Popen([sys.executable, "-c", stubborn], env=env, stdout=subprocess.PIPE).stdout.readline()
print("ready", flush=True)
time.sleep(300)
"""


def member_of(process: subprocess.Popen[bytes]) -> Member:
    return Member("part", process.pid, psutil.Process(process.pid).create_time(), "", "")


def state_of(tmp_path: Path, mark: str, *members: Member) -> State:
    owner = Member("seatrial up", 0, 0.0, "", "")
    return State(mark, "up", owner, str(tmp_path / "none"), Addresses.resolve({}, tmp_path), members)


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    env = {"SEATRIAL_STACK_ID": "test-mark", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], env=env, stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        everyone = [psutil.Process(parent.pid), *psutil.Process(parent.pid).children(recursive=True)]
        assert len(everyone) == 3
        yield parent
        for process in everyone:
            if process.is_running():
                process.kill()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_whole_family_is_found_and_ended(tmp_path: Path, family: subprocess.Popen[bytes]) -> None:
    state = state_of(tmp_path, "test-mark", member_of(family))
    found = processes.find(state)
    assert len(found) == 3
    assert processes.end(state, grace_s=1.0) == 3
    assert all(is_gone(process) for process in found)


def test_orphans_are_found_by_session_and_by_mark(tmp_path: Path, family: subprocess.Popen[bytes]) -> None:
    state = state_of(tmp_path, "test-mark", member_of(family))
    orphans = psutil.Process(family.pid).children(recursive=True)
    family.kill()
    family.wait()
    assert {process.pid for process in processes.find(state)} == {process.pid for process in orphans}
    assert processes.end(state, grace_s=1.0) == 2
    assert all(is_gone(process) for process in orphans)


def test_a_pid_that_is_used_again_is_left_alone(tmp_path: Path, family: subprocess.Popen[bytes]) -> None:
    member = member_of(family)
    reused = Member(member.name, member.pid, member.created - 1000, "", "")
    state = state_of(tmp_path, "another-mark", reused)
    assert processes.find(state) == []
    assert processes.end(state, grace_s=0.2) == 0
    assert family.poll() is None


def test_the_caller_is_never_among_them(tmp_path: Path) -> None:
    own = psutil.Process()
    state = state_of(tmp_path, "m", Member("self", own.pid, own.create_time(), "", ""))
    assert own.pid not in {process.pid for process in processes.find(state)}


def test_a_process_that_ended_but_was_not_collected_counts_as_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as child:
        member = member_of(child)
        deadline = time.monotonic() + 10
        while processes.alive(member) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert processes.alive(member) is None
