"""Find every process of a stack, and end them all.

A process belongs to the stack when it is a recorded member, when it lives in a member's session, when the
stack's mark is in its environment, or when a process that belongs is its parent. One sign is not enough:
Ray's workers overwrite their environment with their title, orphans lose their parent, and a program may open
a session of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

import psutil

from seatrial.errors import SeatrialError
from seatrial.stack.state import Member, State

MARK_VARIABLE = "SEATRIAL_STACK_ID"
CLOCK_SLACK_S = 1.0  # two readings of a process's start differ by rounding only
GRACE_S = 8.0
KILL_ROUNDS = 5


def alive(member: Member) -> psutil.Process | None:
    """The member's process if it still runs."""
    try:
        process = psutil.Process(member.pid)
        same = abs(process.create_time() - member.created) < CLOCK_SLACK_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def find(state: State) -> list[psutil.Process]:
    """Every running process of the stack, the caller and its ancestors excepted."""
    members = {member.pid: member for member in state.members}
    everything = [process for process in psutil.process_iter() if _runs(process)]
    ours = {process.pid for process in everything if _is_signed(process, state, members)}
    parents = {process.pid: _parent(process) for process in everything}
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in ours} - ours
        grown = bool(below)
        ours |= below
    ours -= _own_line()
    return [process for process in everything if process.pid in ours]


def end(state: State, grace_s: float = GRACE_S) -> int:
    """End the stack's processes: the members politely, in reverse order of their start; then what is left.

    Returns how many processes there were.

    Raises:
        SeatrialError: some could not be ended.
    """
    count = len(find(state))
    leaders = [process for member in reversed(state.members) if (process := alive(member)) is not None]
    _signal(leaders, kill=False)
    wait_gone(leaders, grace_s)
    rest = find(state)
    _signal(rest, kill=False)
    wait_gone(rest, grace_s / 4)
    for _ in range(KILL_ROUNDS):  # a dying parent may have started one more
        rest = find(state)
        if not rest:
            return count
        _signal(rest, kill=True)
        wait_gone(rest, grace_s / 4)
    if rest := find(state):
        pids = ", ".join(str(process.pid) for process in rest)
        raise SeatrialError(
            f"processes {pids} do not end: look at them with `ps -fp {pids.replace(' ', '')}`"
        )
    return count


def _is_signed(process: psutil.Process, state: State, members: dict[int, Member]) -> bool:
    if process.pid in members:
        return alive(members[process.pid]) is not None
    try:
        session = os.getsid(process.pid)
    except OSError:
        return False
    if session in members and _owns_session(members[session], process):
        return True
    return _is_marked(process, state)


def _owns_session(leader: Member, process: psutil.Process) -> bool:
    """Whether the session's number still means the member: pids, and so sessions, are used again."""
    if psutil.pid_exists(leader.pid) and alive(leader) is None and not _is_zombie(leader):
        return False
    return _created(process) >= leader.created - CLOCK_SLACK_S


def _is_zombie(leader: Member) -> bool:
    try:
        return bool(psutil.Process(leader.pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _is_marked(process: psutil.Process, state: State) -> bool:
    try:
        return bool(process.environ().get(MARK_VARIABLE) == state.mark)
    except (psutil.Error, OSError, ValueError):
        return False  # another user's process, or one whose title covers its environment


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _created(process: psutil.Process) -> float:
    try:
        return float(process.create_time())
    except psutil.Error:
        return 0.0


def _own_line() -> set[int]:
    own = psutil.Process()
    return {own.pid, *(process.pid for process in own.parents())}


def _signal(processes: Iterable[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        try:
            process.kill() if kill else process.terminate()
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise SeatrialError(
                f"process {process.pid} belongs to another user: run this as that user"
            ) from error


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Wait until none of them runs; zombies whose parent is slow to collect them count as ended."""
    deadline = time.monotonic() + timeout_s
    waiting = list(processes)
    while waiting and time.monotonic() < deadline:
        psutil.wait_procs(waiting, timeout=0.1)
        waiting = [process for process in waiting if process.is_running() and _runs(process)]
