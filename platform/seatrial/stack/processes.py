"""Find every process of a stack, and end them all.

A process belongs to the stack when it is a recorded member, when it lives in a member's session, when the
stack's mark is in its environment, or when a process that belongs is its parent. One sign is not enough:
Ray's workers overwrite their environment with their title, orphans lose their parent, and a program may open
a session of its own.

Strangers are never signalled. The kernel gives a session's number to nobody else while its leader is there,
or anyone in it; once the leader is gone the number may be somebody else's, so it counts only together with an
open file of the stack's. After a restart of the machine or of the container only the mark counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence

import psutil

from seatrial.errors import SeatrialError
from seatrial.stack import proc
from seatrial.stack.state import Member, State

MARK_VARIABLE = "SEATRIAL_STACK_ID"
GRACE_S = 8.0
KILL_ROUNDS = 5


def member(name: str, pid: int, log: str = "", url: str = "") -> Member:
    """What is written down of a process that was just started."""
    return Member(name, pid, proc.boot(), proc.started(pid) or 0, log, url)


def alive(member: Member) -> psutil.Process | None:
    """The member's process if it still runs."""
    try:
        process = psutil.Process(member.pid)
        return process if _is_same(member) and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def find(state: State, sessions: Collection[int] = ()) -> list[psutil.Process]:
    """Every running process of the stack, the caller and its ancestors excepted.

    ``sessions`` are the stack's although their leaders may have ended a moment ago.
    """
    sure = {*sessions, *own_sessions(state)}
    boot = proc.boot()
    doubtful = {member.pid for member in state.members if member.boot == boot} - sure
    everything = [process for process in psutil.process_iter() if _runs(process)]
    ours = {process.pid for process in everything if _is_signed(process, state, sure, doubtful)}
    parents = {process.pid: _parent(process) for process in everything}
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in ours} - ours
        grown = bool(below)
        ours |= below
    ours -= _own_line()
    return [process for process in everything if process.pid in ours]


def own_sessions(state: State) -> set[int]:
    """Sessions whose leader is there, be it as a zombie, and is the one that was recorded."""
    return {member.pid for member in state.members if _is_same(member)}


def end(state: State, grace_s: float = GRACE_S) -> int:
    """End the stack's processes: the members politely, in reverse order of their start; then what is left.

    Returns how many processes there were.

    Raises:
        SeatrialError: some could not be ended.
    """
    sessions = own_sessions(state)
    count = len(find(state, sessions))
    leaders = [process for member in reversed(state.members) if (process := alive(member)) is not None]
    _signal(leaders, kill=False)
    wait_gone(leaders, grace_s)
    rest = find(state, sessions)
    _signal(rest, kill=False)
    wait_gone(rest, grace_s / 4)
    for _ in range(KILL_ROUNDS):  # a dying parent may have started one more
        rest = find(state, sessions)
        if not rest:
            return count
        _signal(rest, kill=True)
        wait_gone(rest, grace_s / 4)
    if rest := find(state, sessions):
        pids = ", ".join(str(process.pid) for process in rest)
        raise SeatrialError(
            f"processes {pids} do not end: look at them with `ps -fp {pids.replace(' ', '')}`"
        )
    return count


def _is_same(member: Member) -> bool:
    return proc.started(member.pid) == member.started and proc.boot() == member.boot


def _is_signed(process: psutil.Process, state: State, sure: set[int], doubtful: set[int]) -> bool:
    try:
        session = os.getsid(process.pid)
    except OSError:
        return False
    if session in sure or process.pid in sure or _is_marked(process, state):
        return True
    return session in doubtful and _holds_files(process, state)


def _holds_files(process: psutil.Process, state: State) -> bool:
    logs = {member.log for member in state.members}
    return any(
        path in logs or path.startswith(f"{state.folder}{os.sep}") for path in proc.open_files(process.pid)
    )


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
