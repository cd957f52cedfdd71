"""Follow a submitted job to its end, and say why it failed when it did."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seatrial.errors import RetryableError, SeatrialError
from seatrial.monitoring.logs import plain
from seatrial.store.job import Cause
from seatrial.submission.causes import Finish, Next, diagnose
from seatrial.submission.events import Event, Lines, parse
from seatrial.submission.screening import redact

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

KEPT_LINES = 200
RECONNECT_S = 2.0
RECONNECTS = 30  # in a row without a new line or an answer
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


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
    cause: Cause | None = None

    @property
    def why(self) -> str:
        """The cause in one line."""
        return "" if self.cause is None else self.cause.text


def follow(
    client: JobSubmissionClient,
    submission_id: str,
    hear: Callable[[Event | str], None],
    *,
    recipe: str | None = None,
) -> Ending:
    """Pass every event and line to ``hear`` until the job ends; what looks like a secret is hidden.

    ``recipe`` is for the command to run next after a failure. Ctrl-C leaves the job alone and passes on.

    Raises:
        RetryableError: the cluster stopped answering; the job may go on.
    """
    kept: deque[str] = deque(maxlen=KEPT_LINES)

    def take(line: str) -> None:
        found = parse(line)
        if isinstance(found, str):
            found = redact(plain(found))
            kept.append(found)
        hear(found)

    asyncio.run(_read(client, submission_id, take))
    return _ending(client, submission_id, list(kept), recipe)


def require_success(submission_id: str, ending: Ending) -> None:
    """Nothing, unless the job failed or was stopped.

    Raises:
        JobFailedError: with the cause in one line and the driver's exit code.
    """
    if ending.status == "SUCCEEDED":
        return
    raise JobFailedError(submission_id, _told(ending), exit_code_of(ending.exit_code))


def exit_code_of(driver: int | None) -> int:
    """The driver's exit code where it is one of a failure that a process can have, else 1."""
    return driver if driver and 0 < driver < 256 else 1


def _told(ending: Ending) -> str:
    cause = ending.cause
    return ending.status if cause is None else f"{cause.text} (next: {cause.remedy})"


def may_be_tried_again(ending: Ending) -> bool:
    """Whether the same job can be expected to get further next time, from its last checkpoint."""
    return ending.cause is not None and ending.cause.is_retryable


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
            failures = 0  # it answers: only the stream was cut off, as proxies do with silent ones
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


def _ending(client: JobSubmissionClient, submission_id: str, kept: list[str], recipe: str | None) -> Ending:
    try:
        info = client.get_job_info(submission_id)
    except broken() as error:
        raise _lost(submission_id) from error
    finish = Finish(
        str(info.status.value),
        info.driver_exit_code,
        str(info.message or ""),
        str(info.error_type or ""),
        kept,
    )
    return Ending(finish.status, finish.exit_code, diagnose(finish, Next.in_ray(submission_id, recipe)))
