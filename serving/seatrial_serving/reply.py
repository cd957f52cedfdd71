"""Watch an answer on its way out: add headers, note the first token, record the exposure, count it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from seatrial_serving.answers import STREAM_ERROR, Reader
from seatrial_serving.errors import Header, Message, Send
from seatrial_serving.metrics import NO_ARM, Meter, Sample
from seatrial_serving.recorder import Recorder
from seatrial_serving.table import Route

MAX_ERROR_CHARS = 300
# vLLM's handler returns nothing once the client has gone, which FastAPI makes into this.
NOBODY_THERE = b"null"
# The event with which a client's stream is whole. In the text of an answer line ends are escaped.
DONE = b"data: [DONE]\n\n"
# The last event before that of a stream whose usage was asked for.
NO_CHOICES, USAGE = b'"choices":[]', b'"usage":{'
# What a client did, which says nothing about the version.
GONE, STALLED = "client disconnected", "client stopped reading"
CLIENT_FAULTS = frozenset({None, GONE, STALLED})


class Reply:
    """The `send` of one routed request. Nothing of the body is held back.

    ``hides_usage`` says that the stream's usage was asked for by us alone: the client does not see it.
    """

    def __init__(
        self,
        send: Send,
        recorder: Recorder,
        meter: Meter,
        service: str,
        request_id: str,
        reader: Reader,
        *,
        hides_usage: bool = False,
    ) -> None:
        self._send = send
        self._recorder = recorder
        self._meter = meter
        self._reader = reader
        self._hides_usage = hides_usage
        self._service = service
        self._request_id = request_id
        self._began = time.perf_counter()
        self._at = time.time()
        self._route: Route | None = None
        self._status = 0
        self._is_sending = False
        self._is_gone = False
        self._is_open = False
        self._left_bytes = math.inf
        self._ttft_s: float | None = None
        self._error: str | None = None
        self.is_stream = False
        self.is_complete = False
        self.on_piece: Callable[[], None] | None = None
        """Called when the engine gives a piece of the answer."""

    @property
    def has_begun(self) -> bool:
        """Whether the status line is already with the client."""
        return self._status != 0

    def client_fault(self, failure: Exception) -> str | None:
        """What the client did to cause ``failure``, when it did."""
        if self._is_gone:
            return GONE
        return STALLED if self._is_sending and isinstance(failure, TimeoutError) else None

    def take(self, route: Route) -> Reply:
        """Answer with this version from now on."""
        self._route = route
        return self

    async def __call__(self, message: Message) -> None:
        """Pass one ASGI message on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers()]}
            self.is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
            self._left_bytes = next(
                (int(value) for name, value in message["headers"] if name == b"content-length"), math.inf
            )
            await self._deliver(message)
            return
        if self.on_piece is not None:
            self.on_piece()
        body: bytes = message.get("body", b"")
        if self._hides_usage and self.is_stream and NO_CHOICES in body and USAGE in body:
            self._reader.take(body, is_stream=True)
            return
        if body == NOBODY_THERE and not self.is_stream:
            await self._deliver(message)
            self._status, self._error = 499, GONE
        elif body:
            is_first = self._ttft_s is None and not body.startswith(STREAM_ERROR)
            await (self._deliver_first if is_first else self._deliver)(message)
            self._on_body(body)
        else:
            await self._deliver(message)
        self.is_complete = self.is_complete or not message.get("more_body", False)

    async def _deliver_first(self, message: Message) -> None:
        """Nobody has read from a version without a record of it, whenever this process dies."""
        self._ttft_s = time.perf_counter() - self._began
        if self._is_exposing and self._status < 400:
            self._recorder.opened(self._row())
            self._is_open = True
        try:
            await self._deliver(message)
        except BaseException:
            self._ttft_s = None
            raise

    async def _deliver(self, message: Message) -> None:
        """Nobody has a whole answer without a record of that, either."""
        if self._is_open and self._completes(message):
            self._is_open = False
            self._recorder.ended(self._request_id)
        self._is_sending = True
        try:
            await self._send(message)
        except OSError:
            self._is_gone = True
            raise
        self._is_sending = False

    def _completes(self, message: Message) -> bool:
        """Whether the client has the whole answer with this piece of it, and no error in it."""
        body: bytes = message.get("body", b"")
        self._left_bytes -= len(body)
        if self._error is not None or body.startswith(STREAM_ERROR):
            return False
        is_whole = body.endswith(DONE) if self.is_stream else self._left_bytes <= 0
        return is_whole or not message.get("more_body", False)

    def _on_body(self, body: bytes) -> None:
        if body.startswith(STREAM_ERROR):
            self._error = body[:MAX_ERROR_CHARS].decode("utf-8", "replace")
        self._reader.take(body, is_stream=self.is_stream)

    def finish(self, error: str | None = None) -> None:
        """The request is over: count it, and record it when it belongs to a trial. Call it once."""
        route = self._route
        if route is None:
            return
        if self._ttft_s is None and error is None and self._status == 0:
            error = "no answer"
        self._error = self._error or error
        sample = self._sample(route)
        self._meter.answered(sample)
        if not self._is_exposing:
            return
        row = self._row()
        row["latency_s"] = sample.latency_s
        row["prompt_tokens"] = sample.prompt_tokens
        row["completion_tokens"] = sample.completion_tokens
        row["refused"] = sample.is_refused
        self._recorder.exposed(row)

    @property
    def is_answered(self) -> bool:
        """Whether the whole answer was given, and none of it was an error."""
        return self.is_complete and self._outcome()[:2] == (200, None)

    def _sample(self, route: Route) -> Sample:
        status, _, ttft_s = self._outcome()
        reader = self._reader
        return Sample(
            route.arm or NO_ARM,
            route.version,
            status,
            time.perf_counter() - self._began,
            ttft_s,
            reader.prompt_tokens,
            reader.completion_tokens,
            route.is_fallback,
            reader.is_refused(),
        )

    @property
    def _is_exposing(self) -> bool:
        return self._route is not None and bool(self._route.trial)

    def _row(self) -> dict[str, Any]:
        route = self._route
        assert route is not None  # noqa: S101  # only called for routed requests
        status, error, ttft_s = self._outcome()
        return {
            "request_id": self._request_id,
            "trial_id": route.trial,
            "service": self._service,
            "unit": route.unit,
            "sticky": route.is_sticky,
            "arm": route.arm,
            "assigned_version": route.assigned,
            "served_version": route.version,
            "fallback": route.is_fallback,
            "status": status,
            "at": self._at,
            "ttft_s": ttft_s,
            "error": None if error is None else _storable(error),
        }

    def _outcome(self) -> tuple[int, str | None, float | None]:
        """Status, error and time to the first token. An answer with an error is a failure, no exposure."""
        is_clients = self._error in CLIENT_FAULTS
        if self._status >= 400:
            error = self._error or self._reader.last[:MAX_ERROR_CHARS].decode("utf-8", "replace")
            return self._status, error, None
        if is_clients and self._ttft_s is not None:
            return self._status, None, self._ttft_s  # also when the reader left before the end
        if is_clients:
            return 499, self._error or GONE, None  # nothing was read: no exposure, and nobody's failure
        if self._status:
            return 500, self._error, self._ttft_s  # it broke off: the status line had promised better
        return 499, self._error, None

    def _headers(self) -> list[Header]:
        headers = [(b"x-seatrial-request-id", self._request_id.encode())]
        if self._route is not None:
            headers.append((b"x-seatrial-version", self._route.version.encode()))
            if self._route.trial:
                headers.append((b"x-seatrial-arm", self._route.arm.encode()))
                headers.append((b"x-seatrial-trial", self._route.trial.encode()))
        return headers


def _storable(text: str) -> str:
    """Without what no database or no JSON can keep."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
