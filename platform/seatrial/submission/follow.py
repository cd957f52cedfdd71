"""Follow a submitted job to its end, and say why it failed when it did."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seatrial.errors import RetryableError, SeatrialError
from seatrial.monitoring.logs import COLOUR, cause
from seatrial.submission.events import Event, Lines, parse

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

KEPT_LINES = 200
RECONNECT_S = 2.0
RECONNECTS = 30  # in a row without a new line
KILLED = 128 + 9  # as a shell reports SIGKILL
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# `(RayTrainWorker pid=…)` repetitions and Ray's notes about itself explain no failure.
RAY_CHATTER = re.compile(r"^\(\w[\w() ]*pid=|INFO (?:worker|job_manager|sdk|cli)\.py")


class JobFailedError(SeatrialError):
    """The job ended badly; ``exit_code`` is its driver's."""

    def __init__(self, submission_id: str, why: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"{submission_id}: {why}")


@dataclass(frozen=True)
class Ending:
    """How a job ended. ``exit_code`` is None when its driver was never started or was lost."""

    status: str
    exit_code: int | None
    why: str


def follow(client: JobSubmissionClient, submission_id: str, hear: Callable[[Event | str], None]) -> Ending:
    """Pass every event and line to ``hear`` until the job ends.

    Ctrl-C leaves the job alone and passes on.

    Raises:
        RetryableError: the cluster stopped answering; the job may go on.
    """
    kept: deque[str] = deque(maxlen=KEPT_LINES)

    def take(line: str) -> None:
        found = parse(line)
        if isinstance(found, str):
            kept.append(COLOUR.sub("", found))
        hear(found)

    asyncio.run(_read(client, submission_id, take))
    return _ending(client, submission_id, list(kept))


def require_success(submission_id: str, ending: Ending) -> None:
    """Nothing, unless the job failed or was stopped.

    Raises:
        JobFailedError: with the cause in one line and the driver's exit code.
    """
    if ending.status == "SUCCEEDED":
        return
    code = ending.exit_code if ending.exit_code and 0 < ending.exit_code < 256 else 1
    raise JobFailedError(submission_id, ending.why, code)


def may_be_tried_again(ending: Ending) -> bool:
    """Whether the same job can be expected to get further next time, from its last checkpoint.

    Its driver was killed or lost, or says so with the exit code of a :class:`RetryableError`.
    """
    if ending.status != "FAILED":
        return False
    return (
        ending.exit_code is None
        or ending.exit_code < 0
        or ending.exit_code in (RetryableError.exit_code, KILLED)
    )


async def _read(client: JobSubmissionClient, submission_id: str, take: Callable[[str], None]) -> None:
    """Pass each line on once, however often the connection breaks: a new one begins at the first line."""
    passed = failures = 0
    while failures < RECONNECTS:
        seen = 0
        failures += 1
        try:
            async for line in _lines(client, submission_id):
                seen += 1
                if seen > passed:
                    take(line)
                    passed, failures = seen, 0
            if str(client.get_job_status(submission_id).value) in ENDED:
                return
        except broken():  # the status says next time whether to go on
            pass
        await asyncio.sleep(RECONNECT_S)
    raise _lost(submission_id)


def broken() -> tuple[type[Exception], ...]:
    """What the client raises while the dashboard is away or starts again."""
    from aiohttp import ClientError  # its refused handshakes and lost connections are no OSErrors

    return (RuntimeError, OSError, ClientError)


def _lost(submission_id: str) -> RetryableError:
    return RetryableError(
        f"{submission_id}: Ray does not answer; the job may go on: `ray job logs -f {submission_id}`"
    )


async def _lines(client: JobSubmissionClient, submission_id: str) -> AsyncIterator[str]:
    lines = Lines()
    async for chunk in client.tail_job_logs(submission_id):
        for line in lines.feed(chunk):
            yield line
    for line in lines.flush():
        yield line


def _ending(client: JobSubmissionClient, submission_id: str, kept: list[str]) -> Ending:
    try:
        info = client.get_job_info(submission_id)
    except broken() as error:
        raise _lost(submission_id) from error
    status = str(info.status.value)
    said = [line for line in kept if not RAY_CHATTER.search(line)]
    message = (str(info.message or "").strip().splitlines() or [""])[0]
    if status == "STOPPED":
        return Ending(status, info.driver_exit_code, "was stopped")
    why = cause(said) or message or status
    if info.driver_exit_code is None or info.driver_exit_code < 0:
        why = message or why  # the driver had no chance to say anything
    elif info.driver_exit_code == KILLED:
        why = "its driver was killed (SIGKILL; out of memory?)"
    return Ending(status, info.driver_exit_code, why)
