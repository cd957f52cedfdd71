"""Start a stack and wait until every part answers; take everything back when one does not."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from seatrial.config.addresses import Addresses
from seatrial.errors import SeatrialError, UserError
from seatrial.monitoring.bearer import TOKEN_VARIABLE
from seatrial.monitoring.logs import cause, tail
from seatrial.stack import ports, processes, state
from seatrial.stack.child import Child
from seatrial.stack.haproxy import write_wrapper
from seatrial.stack.parts import Plan, children
from seatrial.stack.ports import LOOPBACK, Ports
from seatrial.stack.state import State

READY_TIMEOUT_S = 180.0
POLL_S = 0.2
# Ray makes unix sockets below its folder, whose paths must stay under 108 bytes (`sun_path` in unix(7)).
SHORT_TEMPORARY = Path("/tmp")  # noqa: S108
LONGEST_TEMPORARY = 24
LOCK_NAME = "up.lock"
RAY_SESSION = "session_latest"
RAY_LOGS = Path("logs/ray")


@dataclass(frozen=True)
class Ready:
    """A part answers, so many seconds after the start."""

    name: str
    url: str
    seconds: float


def up(home: Path, chosen: Ports, ray_cpus: int, report: Callable[[Ready], None]) -> State:
    """Start the stack of ``home``; ``report`` hears of each part as it becomes ready.

    Raises:
        UserError: a port is in use, a package is missing, the folder cannot be written, or a stack of it is
            half up.
        SeatrialError: a part ended or did not answer in time. Nothing is left running then, nor after
            Ctrl-C or SIGTERM.
    """
    _make(home)
    with _only_one(home):
        _clear_stale(home)
        for package in ("ray", "mlflow"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{package}: not installed: pip install 'seatrial[jobs,serving]'")
        ports.require_free(chosen)
        return _start(home, chosen, ray_cpus, report)


def running(home: Path) -> State | None:
    """The stack of ``home`` if every part of it runs."""
    found = state.read(home)
    if found is None or found.phase != "up":
        return None
    return found if all(processes.alive(member) for member in found.members) else None


@dataclass(frozen=True)
class Ended:
    """How many processes `seatrial down` ended, and where Ray's logs are now if there were some."""

    processes: int
    ray_logs: Path | None


def down(home: Path) -> Ended | None:
    """End the stack of ``home`` and whatever it started; None when there was none.

    Raises:
        SeatrialError: a process could not be ended.
    """
    found = state.read(home)
    if found is None:
        return None
    if found.phase == "starting" and (starter := processes.alive(found.owner)) is not None:
        starter.terminate()  # it takes back what it started
        processes.wait_gone([starter], 3 * processes.GRACE_S)
        found = state.read(home) or found
    count = processes.end(found)
    return Ended(count, _sweep(home, found))


def _start(home: Path, chosen: Ports, ray_cpus: int, report: Callable[[Ready], None]) -> State:
    plan = _plan(home, chosen, ray_cpus)
    owner = processes.member("seatrial up", os.getpid())
    current = State(plan.mark, "starting", owner, str(plan.folder), plan.addresses)
    started: list[tuple[Child, subprocess.Popen[bytes]]] = []
    with _signals_interrupt():
        try:
            state.write(home, current)
            plan.folder.mkdir(mode=0o700)
            plan = replace(plan, proxy_program=write_wrapper(plan.folder))
            for child in children(plan):
                process = _spawn(child)
                started.append((child, process))
                member = processes.member(child.name, process.pid, str(child.log), child.url)
                current = replace(current, members=(*current.members, member))
                state.write(home, current)
            _wait(started, report)
            current = replace(current, phase="up")
            state.write(home, current)
            return current
        except BaseException:
            with _signals_ignored():
                time.sleep(POLL_S)  # a process that was just forked carries the mark once it runs its program
                processes.end(current)
                _sweep(home, current)
            raise


def _plan(home: Path, chosen: Ports, ray_cpus: int) -> Plan:
    addresses = Addresses(
        mlflow_uri=f"http://{LOOPBACK}:{chosen.mlflow}",
        ray_dashboard=f"http://{LOOPBACK}:{chosen.dashboard}",
        serve_url=f"http://{LOOPBACK}:{chosen.serve}",
        controller_url=f"http://{LOOPBACK}:{chosen.controller}",
        store_url=os.environ.get("SEATRIAL_STORE_URL") or f"sqlite:///{home / 'store.db'}",
        home=home,
        ray_token_path=home / "ray_token",
        ray_address=f"{LOOPBACK}:{chosen.ray}",
    )
    temporary = Path(tempfile.gettempdir())
    if len(str(temporary)) > LONGEST_TEMPORARY:
        temporary = SHORT_TEMPORARY
    mark = secrets.token_hex(8)
    first, second, third, fourth = ports.inner(4, chosen)
    return Plan(
        mark=mark,
        ports=chosen,
        addresses=addresses,
        folder=temporary / f"seatrial-{hashlib.sha256(mark.encode()).hexdigest()[:8]}",
        ray_cpus=ray_cpus,
        token=_token(home / "ray_token"),
        inner_ports=(first, second, third, fourth),
        hook_secret_path=_kept(home / "webhook_secret", secrets.token_hex(32)),
        # 32 random bytes, as `cryptography.fernet.Fernet.generate_key` makes them.
        hook_key=_kept(
            home / "mlflow_webhook_key", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        ).read_text(encoding="ascii"),
    )


def _kept(path: Path, new: str) -> Path:
    """A file that only its owner can read, made with ``new`` in it the first time."""
    if not path.is_file():
        state.write_private(path, new)
    return path


def _token(path: Path) -> str:
    """Ray's token, made the first time as `ray get-auth-token --generate` does: 64 hexadecimal digits.

    One that `RAY_AUTH_TOKEN` gives is taken instead, since plain `ray` commands would send that one.
    """
    given = os.environ.get(TOKEN_VARIABLE, "").strip()
    kept = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    token = given or kept or secrets.token_hex(32)
    state.write_private(path, token)
    return token


def _spawn(child: Child) -> subprocess.Popen[bytes]:
    with child.log.open("wb") as log:
        return subprocess.Popen(
            child.command,
            env=dict(child.env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(started: list[tuple[Child, subprocess.Popen[bytes]]], report: Callable[[Ready], None]) -> None:
    began = time.monotonic()
    waiting = list(started)
    trouble: dict[str, str] = {}
    while waiting:
        for child, process in list(waiting):
            if (code := process.poll()) is not None:
                why = cause(tail(child.log)) or "it said nothing"
                raise SeatrialError(f"{child.name}: ended with exit code {code}: {why} (log: {child.log})")
            found = next((said for probe in child.probes if (said := probe.trouble())), None)
            if found is None:
                report(Ready(child.name, child.url, time.monotonic() - began))
                waiting.remove((child, process))
            else:
                trouble[child.name] = found
        if waiting and time.monotonic() - began > READY_TIMEOUT_S:
            child = waiting[0][0]
            why = f"{trouble[child.name]} (log: {child.log})"
            raise SeatrialError(f"{child.name}: not ready after {READY_TIMEOUT_S:.0f} s: {why}")
        time.sleep(POLL_S)


def _clear_stale(home: Path) -> None:
    """Forget a stack whose parts are gone, stragglers included; refuse while parts of it run."""
    found = state.read(home)
    if found is None:
        return
    runs = [member.name for member in found.members if processes.alive(member)]
    if runs:
        raise UserError(f"--home: {home}: {', '.join(runs)} still runs from before: `seatrial down` first")
    processes.end(found)
    _sweep(home, found)


def _sweep(home: Path, found: State) -> Path | None:
    """Delete what a stack leaves: its state file and Ray's folder. Data and logs stay; returns where Ray's
    logs went."""
    folder, kept = Path(found.folder), None
    if folder.name.startswith("seatrial-"):
        kept = _keep_ray_logs(folder, home)
        shutil.rmtree(folder, ignore_errors=True)
    state.forget(home)
    return kept


def _keep_ray_logs(folder: Path, home: Path) -> Path | None:
    """Move the logs of Ray's session, those of jobs, replicas and engines among them, in place of the last
    ones. None where there are none, or no room for them."""
    logs = (folder / RAY_SESSION / "logs").resolve()
    kept = home / RAY_LOGS
    if not logs.is_dir():
        return None
    shutil.rmtree(kept, ignore_errors=True)
    try:
        shutil.move(logs, kept)
        kept.chmod(0o700)  # as the folder they come from
    except (OSError, shutil.Error):
        return None
    return kept


def _make(home: Path) -> None:
    try:
        (home / "logs").mkdir(parents=True, exist_ok=True)
        (home / LOCK_NAME).touch()
    except OSError as error:
        raise UserError(
            f"--home: {home}: cannot be used ({error.strerror}): give a folder that you can write to"
        ) from error


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Let one `seatrial up` at a time start a stack in ``home``."""
    with (home / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--home: {home}: another `seatrial up` is starting it: wait for it") from error
        yield


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal do what Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Let a second Ctrl-C not stop the cleaning up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
