"""Which processes belong to a stack, and that all of them end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from seatrial.config.addresses import Addresses
from seatrial.stack import proc, processes
from seatrial.stack.state import Member, State

SLEEP = "import time; time.sleep(300)"
# A parent that starts a child in a session of its own, and one that ignores SIGTERM and, like Ray's workers,
# shows no mark but writes its log into the stack's folder.
FAMILY = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
env = {{k: v for k, v in os.environ.items() if k != "SEATRIAL_STACK_ID"}}
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); " + {SLEEP!r}
worker = subprocess.Popen([sys.executable, "-c", stubborn], env=env, stdout=open(sys.argv[1], "w"))
while not os.path.getsize(sys.argv[1]):
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(300)
"""
# A daemon as shells leave them: it lives on in a session whose leader has ended.
DAEMON = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}], stdout=subprocess.DEVNULL).pid, flush=True)
"""


def member_of(process: subprocess.Popen[bytes]) -> Member:
    return processes.member("part", process.pid)


def state_of(tmp_path: Path, mark: str, *members: Member) -> State:
    owner = Member("seatrial up", 0, "", 0, "", "")
    return State(mark, "up", owner, str(tmp_path), Addresses.resolve({}, tmp_path), members)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {"SEATRIAL_STACK_ID": "test-mark", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", FAMILY, str(tmp_path / "worker.out")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True) as parent:
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


def test_orphans_are_found_by_their_mark_and_by_the_files_they_hold(
    tmp_path: Path, family: subprocess.Popen[bytes]
) -> None:
    state = state_of(tmp_path, "test-mark", member_of(family))
    orphans = psutil.Process(family.pid).children(recursive=True)
    family.kill()
    family.wait()
    assert {process.pid for process in processes.find(state)} == {process.pid for process in orphans}
    assert processes.end(state, grace_s=1.0) == 2
    assert all(is_gone(process) for process in orphans)


def test_a_pid_that_is_used_again_is_left_alone(tmp_path: Path, family: subprocess.Popen[bytes]) -> None:
    member = member_of(family)
    state = state_of(tmp_path / "gone", "another-mark", replace(member, started=member.started - 1000))
    assert processes.alive(state.members[0]) is None
    assert processes.find(state) == []
    assert processes.end(state, grace_s=0.2) == 0
    assert family.poll() is None


def test_after_a_restart_of_the_machine_the_same_numbers_mean_strangers(
    tmp_path: Path, family: subprocess.Popen[bytes]
) -> None:
    """Pids and starts repeat when a container starts again; even a file they hold proves nothing then."""
    earlier = replace(member_of(family), boot="another boot")
    state = state_of(tmp_path, "another-mark", earlier)
    assert processes.alive(earlier) is None
    assert processes.end(state, grace_s=0.2) == 0
    assert family.poll() is None
    marked = replace(state, mark="test-mark")
    assert len(processes.find(marked)) == 3, "the mark is proof at any time"


def test_a_stranger_in_a_session_whose_number_was_a_members_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        daemon = psutil.Process(int(leader.stdout.readline()))
        leader.wait()
        assert os.getsid(daemon.pid) == leader.pid
        state = state_of(tmp_path, "m", Member("part", leader.pid, proc.boot(), 1, "", ""))
        try:
            assert processes.find(state) == []
            assert processes.end(state, grace_s=0.2) == 0
            assert not is_gone(daemon)
        finally:
            daemon.kill()


def test_a_step_of_the_clock_makes_nobody_a_stranger(
    tmp_path: Path, family: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What psutil calls a process's start is the time of boot plus ticks; the former follows the clock."""
    state = state_of(tmp_path, "another-mark", member_of(family))
    before = psutil.Process(family.pid).create_time()
    earlier = psutil.boot_time() - 3600
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: earlier)
    assert psutil.Process(family.pid).create_time() < before - 3000
    assert processes.alive(state.members[0]) is not None
    assert len(processes.find(state)) == 3


def test_whoever_lives_in_a_members_session_ends_with_it_marked_or_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON + "import time; time.sleep(300)"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        below = psutil.Process(int(leader.stdout.readline()))
        assert processes.end(state_of(tmp_path, "m", member_of(leader)), grace_s=1.0) == 2
        assert is_gone(below)


def test_the_caller_is_never_among_them(tmp_path: Path) -> None:
    own = psutil.Process()
    state = state_of(tmp_path, "m", processes.member("self", own.pid))
    assert own.pid not in {process.pid for process in processes.find(state)}


def test_a_process_that_ended_but_was_not_collected_counts_as_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as child:
        member = member_of(child)
        deadline = time.monotonic() + 10
        while processes.alive(member) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert processes.alive(member) is None
