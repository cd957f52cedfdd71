"""Marks on a machine's disk of versions that are being loaded: one that nobody holds tells of a death.

The first death says little: the machine may have been short of memory, or going down. A version is refused
when it was loaded once more after that, and the process has ended again.

A process keeps its mark locked from before a load until after it, so that neither process ids nor clocks have
to be believed, also where containers share a disk: the kernel lets go when the process ends, however it does.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seatrial.errors import RetryableError, UserError
from seatrial.reconcile.world import FATAL_LOAD

log = logging.getLogger(__name__)
SUFFIX = ".loading"
DIGEST_CHARS = 16
HEALTH_POLL_S = 1.0


class Mark:
    """One load by this process."""

    def __init__(self, path: Path) -> None:
        """Write and lock ``path``.

        Raises:
            OSError: the disk refuses; there is no mark then.
        """
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Waits no longer than another process looks at it, to which it is none while it is empty.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.write(self._fd, f"process {os.getpid()}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC".encode())
        except OSError:
            path.unlink(missing_ok=True)
            os.close(self._fd)
            raise

    def remove(self) -> None:
        """The load is over, whatever came of it."""
        try:
            os.ftruncate(self._fd, 0)  # for whoever has opened it and locks it once it is closed here
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed: %s", self._path, error)
        finally:
            os.close(self._fd)

    def leave(self) -> None:
        """The load ended the engine: let the mark tell of it already, while the process still runs."""
        os.close(self._fd)


class Marks:
    """Those of one service on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def guard(
        self,
        version: str,
        digest: str,
        load: Callable[[], Coroutine[Any, Any, None]],
        check_health: Callable[[], Awaitable[None]],
    ) -> None:
        """Load under a mark, which stays when the process or its engine does not survive it.

        Raises:
            UserError: the engine did not survive it.
            RetryableError: the engine was dead before, for which no version is to blame.
            Exception: what ``load`` raised.
        """
        try:
            await check_health()
        except Exception as error:
            raise RetryableError(str(error)) from error
        mark = self._put(version, digest)
        failure: BaseException | None = None
        try:
            await _while_well(load(), check_health)
        except BaseException as error:
            failure = error
        is_well = await _is_well(check_health)
        if mark is not None:
            mark.remove() if is_well else mark.leave()
        if not is_well:
            raise UserError(f"{FATAL_LOAD} the engine: {failure or 'it died soon after'}") from failure
        if failure is not None:
            raise failure
        self.forget(lambda marked: marked == version)

    def _put(self, version: str, digest: str) -> Mark | None:
        number = 1 + max((number for number, _ in self._left(version, digest)), default=0)
        path = self._folder / f"{_stem(version, digest)}{number}-{uuid.uuid4().hex}{SUFFIX}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return Mark(path)
        except OSError as error:
            log.warning("version %s is loaded without a mark: %s", version, error)
            return None

    def check(self, version: str, digest: str) -> None:
        """Refuse files of which a load has ended its process, and one after that again.

        Raises:
            UserError: so it was, which process and when.
        """
        for number, text in self._left(version, digest):
            if number > 1:
                raise UserError(f"{FATAL_LOAD} the process twice: look at that replica's log ({text})")

    def _left(self, version: str, digest: str) -> list[tuple[int, str]]:
        """Which load in a row each mark is of that a dead process left, and what it says."""
        stem = _stem(version, digest)
        found = [(path, _left(path)) for path in self._folder.glob(f"{stem}*{SUFFIX}")]
        return [(int(path.name.removeprefix(stem).split("-")[0]), text) for path, text in found if text]

    def forget(self, is_over: Callable[[str], bool]) -> None:
        """Remove the marks that dead processes left of versions for which ``is_over``."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if is_over(path.name.partition("-")[0]) and _left(path):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s: cannot be removed: %s", path, error)


async def _while_well(
    loading: Coroutine[Any, Any, None], check_health: Callable[[], Awaitable[None]]
) -> None:
    """Wait for ``loading`` while the engine is well: vLLM never answers a load whose engine was killed."""
    task = asyncio.create_task(loading)
    try:
        while not (await asyncio.wait([task], timeout=HEALTH_POLL_S))[0]:
            await check_health()
    except BaseException:
        task.cancel()
        await asyncio.wait([task], timeout=HEALTH_POLL_S)
        raise
    await task


async def _is_well(check_health: Callable[[], Awaitable[None]]) -> bool:
    try:
        await check_health()
    except Exception:
        return False
    return True


def _stem(version: str, digest: str) -> str:
    return f"{version}-{digest[:DIGEST_CHARS]}-"


def _left(path: Path) -> str:
    """What a mark says that nobody holds; empty for one that is held, or of a load that was not begun."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return file.read(200).decode("utf-8", "replace")
    except BlockingIOError:
        return ""  # its process lives
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("%s: cannot be read: %s", path, error)
        return ""
