"""Copies of the champion's requests for the version with the alias `shadow`.

A copy starts when the champion's answer has been given, and only when the engine has room that no real
request wants; else it waits in a short line, and is dropped when the line is full. Its priority in the
engine is lower than that of real requests. Nothing of it reaches the client, and it is no exposure: what
it was like is counted in the metrics, under the arm `shadow`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from seatrial_serving.answers import STREAM_ERROR, Reader
from seatrial_serving.live import Live
from seatrial_serving.metrics import SHADOW, Meter, Sample
from seatrial_serving.request import encode
from seatrial_serving.spec import QUEUE_FACTOR
from seatrial_serving.table import CHAMPION, Route

log = logging.getLogger(__name__)
MOST_WAITING = 64
MOST_WAITING_BYTES = 2**24
MOST_RUNNING = 4
POLL_S = 0.05
LOW_PRIORITY = 1
"""Real requests have 0, which goes first."""
Stream = Callable[[str | None, str, bytes, str], AsyncGenerator[Any, None]]
"""Have a version answer: (its application or None for this engine, path, body, request id).

Yields the status and headers as a tuple, then pieces of the body.
"""


@dataclass(frozen=True, slots=True)
class Copy:
    """A request to repeat, and what the champion said."""

    version: str
    path: str
    body: bytes
    """JSON, as the champion was asked."""
    request_id: str
    texts: tuple[str, ...] | None


class Shadows:
    """The line of copies. Everything runs on the event loop; nothing is ever waited for by a request."""

    def __init__(self, live: Live, stream: Stream, meter: Meter) -> None:
        self._live = live
        self._stream = stream
        self._meter = meter
        self._waiting: deque[Copy] = deque()
        self._waiting_bytes = 0
        self._is_closed = False
        self._running: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None

    def wants(self, route: Route, request_id: str) -> str | None:
        """The version that should see a copy of this request of the champion's, if any should."""
        table = self._live.table
        shadow = table.shadow
        if (
            shadow is None
            or route.is_pinned
            or route.is_fallback
            or route.version != table.aliases.get(CHAMPION)
        ):
            return None
        is_drawn = int(request_id[:8], 16) < shadow.share * 2**32  # the id is random
        return shadow.version if is_drawn and shadow.version in self._live.ready else None

    def offer(self, copy: Copy) -> None:
        """Put a copy into the line, which is bounded in copies and in bytes."""
        is_full = (
            len(self._waiting) >= MOST_WAITING or self._waiting_bytes + len(copy.body) > MOST_WAITING_BYTES
        )
        if is_full or self._is_closed:
            self._meter.shadowed(copy.version, "dropped")
            return
        self._waiting.append(copy)
        self._waiting_bytes += len(copy.body)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    def close(self) -> None:
        """End what runs, forget what waits, and take no more."""
        self._is_closed = True
        self._waiting.clear()
        for task in (self._worker, *self._running):
            if task is not None:
                task.cancel()

    async def _work(self) -> None:
        while self._waiting:
            if not self._has_room:
                await asyncio.sleep(POLL_S)
                continue
            copy = self._waiting.popleft()
            self._waiting_bytes -= len(copy.body)
            task = asyncio.create_task(self._answer(copy))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    @property
    def _has_room(self) -> bool:
        """Whether the engine computes fewer requests at once than it can."""
        running = len(self._running)
        most = self._live.rules.max_in_flight // QUEUE_FACTOR
        return running < MOST_RUNNING and self._live.admitted + running < most

    async def _answer(self, copy: Copy) -> None:
        live = self._live
        if copy.version not in live.ready:
            self._meter.shadowed(copy.version, "dropped")
            return
        live.in_flight[copy.version] += 1
        reader, began = Reader(keeps=True), time.perf_counter()
        sample = Sample(SHADOW, copy.version, 500, 0.0)
        try:
            async with asyncio.timeout(live.rules.http.request_timeout_s):
                sample = await self._read(copy, reader, sample)
        except Exception as error:
            log.info(
                "shadow %s: request %s: %s: %s", copy.version, copy.request_id, type(error).__name__, error
            )
        finally:
            live.in_flight[copy.version] -= 1
        self._meter.answered(replace(sample, latency_s=time.perf_counter() - began))
        self._meter.shadowed(copy.version, _result(sample, reader, copy))

    async def _read(self, copy: Copy, reader: Reader, sample: Sample) -> Sample:
        began = time.perf_counter()
        asked = msgspec.json.decode(copy.body)
        body = {**asked, "model": f"{self._live.table.service}@{copy.version}", "priority": LOW_PRIORITY}
        app = self._live.ready[copy.version]
        is_stream = bool(asked.get("stream"))
        status, ttft_s = 500, None
        parts = self._stream(app, copy.path, encode(body), f"{copy.request_id}-shadow")
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, tuple):
                    status = part[0]
                    continue
                ttft_s = ttft_s if ttft_s is not None else time.perf_counter() - began
                reader.take(part, is_stream=is_stream)
                if part.startswith(STREAM_ERROR):
                    status = 500
        return replace(
            sample,
            status=status,
            ttft_s=ttft_s,
            prompt_tokens=reader.prompt_tokens,
            completion_tokens=reader.completion_tokens,
            is_refused=reader.is_refused(),
        )


def _result(sample: Sample, reader: Reader, copy: Copy) -> str:
    if sample.status >= 400:
        return "failed"
    return "same" if reader.texts() == copy.texts is not None else "different"
