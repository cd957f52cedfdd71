"""The ASGI application in front of vLLM's: who, what, how much, which version, and what came of it.

authenticate -> route allowlist -> limits -> parse once -> choose the version -> pass on -> record
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from seatrial_serving import outcomes
from seatrial_serving.answers import Reader
from seatrial_serving.errors import App, HttpError, Receive, Scope, Send, send_json
from seatrial_serving.limits import check, unit_of
from seatrial_serving.live import Live
from seatrial_serving.metrics import OTHER, Meter
from seatrial_serving.recorder import Recorder
from seatrial_serving.reply import GONE, Reply
from seatrial_serving.request import Head, encode, forwarded_scope, parse, read_body, read_head, replay
from seatrial_serving.seldom import Seldom
from seatrial_serving.shadow import Copy, Shadows
from seatrial_serving.table import Route

log = logging.getLogger(__name__)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
END_TIMEOUT_S = 5.0
# A stream's next token is waited for as much shorter: renewing the limit at each token costs more than that.
RENEW_SHARE = 0.02
# Of the limit, for challengers in applications of their own, all together. When one hangs, the champion
# answers everybody within the rest, twice what its engine computes at once (`spec.QUEUE_FACTOR`). One that is
# merely slow, or has nearly all of the traffic, reaches it hardly before the service reaches the limit.
APPS_SHARE = 7 / 8
ENGINE_FAILED = HttpError(500, "the engine failed", code="engine_failed")
SERVICE_FAILED = HttpError(500, "the service failed", code="service_failed")
Forward = Callable[[str, str, bytes, Head, Receive, Send], Awaitable[None]]
"""Send a request to another Serve application: (app, path, body, head, receive, send)."""


class UnreachableError(Exception):
    """A version's own deployment failed before its answer began, or was not asked."""


class Traffic:
    """Wraps ``engine``, vLLM's own OpenAI app."""

    def __init__(
        self,
        engine: App,
        live: Live,
        recorder: Recorder,
        forward: Forward,
        *,
        meter: Meter,
        shadows: Shadows,
    ) -> None:
        self._engine = engine
        self._live = live
        self._recorder = recorder
        self._forward = forward
        self._meter = meter
        self._shadows = shadows
        self._fallbacks = Seldom()
        self._apart = 0
        """Requests under way to challengers in applications of their own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._engine(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"][len(scope.get("root_path", "")) :]
        if path == "/health" and scope["method"] == "GET":
            await self._engine(scope, receive, send)
            return
        head = read_head(scope)
        try:
            await self._dispatch(path, scope, head, receive, send)
        except Exception as failure:
            error = failure if isinstance(failure, HttpError) else SERVICE_FAILED
            if error is SERVICE_FAILED:
                log.exception("request %s (the client's id: %r) failed", head.request_id, head.client_id)
            self._meter.rejected(error.code or OTHER)
            headers = [(b"x-seatrial-request-id", head.request_id.encode())]
            if error.status == 429:
                headers.append((b"retry-after", b"1"))
            await send_json(send, error.status, error.body(), headers)

    async def _dispatch(self, path: str, scope: Scope, head: Head, receive: Receive, send: Send) -> None:
        rules = self._live.rules
        rules.keys.check(head.authorization, host=head.host, origin=head.origin)
        match scope["method"], path:
            case "POST", "/v1/chat/completions" | "/v1/completions":
                await self._answer(path, scope, head, receive, send)
            case "POST", "/v1/outcomes":
                body = await self._read(receive, head)
                table = self._live.table
                trial_id = table.trial.id if table.trial is not None else ""
                taken = await outcomes.accept(body, table.service, self._recorder, trial_id=trial_id)
                await send_json(send, 200, taken)
            case "GET", "/v1/models":
                await send_json(send, 200, self._models())
            case method, _:
                raise HttpError(404, f"{method} {path[:100]}: no such route", code="unknown_route")

    async def _read(self, receive: Receive, head: Head) -> dict[str, Any]:
        http = self._live.rules.http
        try:
            async with asyncio.timeout(http.request_timeout_s):
                body = await read_body(receive, head, http.max_body_bytes)
        except TimeoutError as error:
            late = f"body: not read within {http.request_timeout_s:g} s: send it faster"
            raise HttpError(408, late, param="body", code="timeout") from error
        return parse(body)

    async def _answer(self, path: str, scope: Scope, head: Head, receive: Receive, send: Send) -> None:
        live, rules = self._live, self._live.rules
        if live.admitted >= rules.max_in_flight:
            raise HttpError(429, "too many requests under way: try again in a second", code="overloaded")
        live.admitted += 1
        try:
            body = await self._read(receive, head)
            check(body, rules.http, chat=path == CHAT, model_tokens=rules.model_tokens)
            route = self._route(body.get("model"), unit_of(body, head.unit), head.request_id)
            shadow = self._shadows.wants(route, head.request_id)
            reader = Reader(live.table.refusal_phrases, keeps=shadow is not None)
            reply = Reply(
                send,
                self._recorder,
                self._meter,
                live.table.service,
                head.request_id,
                reader,
                hides_usage=_ask_usage(body),
            ).take(route)
            await self._watch(reply, self._serve(route, path, scope, head, body, receive, reply), head)
        finally:
            live.admitted -= 1
        if shadow is not None and reply.is_answered:
            self._shadows.offer(Copy(shadow, path, encode(body), head.request_id, reader.texts()))

    def _route(self, model: object, unit: str | None, request_id: str) -> Route:
        table, sticky = self._live.table, self._live.sticky
        if not table.keeps_units or table.trial is None or sticky.trial != table.trial.id:
            return table.route(model, unit, request_id, self._live.ready)
        route = table.route(model, unit, request_id, self._live.ready, sticky.arms)
        if route.is_sticky:
            sticky.keep(route.unit, route.arm)
        return route

    async def _watch(self, reply: Reply, serving: Coroutine[Any, Any, None], head: Head) -> None:
        """Run ``serving`` as long as pieces of the answer keep coming, and record what came of it."""
        limit_s = self._live.rules.http.request_timeout_s
        clock = asyncio.get_running_loop().time
        error: str | None = None

        due = clock() + RENEW_SHARE * limit_s

        def wait_again() -> None:
            nonlocal due
            now = clock()
            if now >= due and not patience.expired():
                patience.reschedule(now + limit_s)
                due = now + RENEW_SHARE * limit_s

        try:
            async with asyncio.timeout(limit_s) as patience:
                reply.on_piece = wait_again
                try:
                    await serving
                finally:
                    reply.on_piece = None
        except asyncio.CancelledError:
            error = GONE
            raise
        except Exception as failure:
            error = reply.client_fault(failure)
            if error is None:
                answer, error = _explain(failure, limit_s)
                if answer is ENGINE_FAILED:
                    ids = (head.request_id, head.client_id)
                    log.exception("request %s (the client's id: %r) failed", *ids)
                await _end(reply, answer)
        finally:
            reply.finish(error)

    async def _serve(
        self,
        route: Route,
        path: str,
        scope: Scope,
        head: Head,
        body: dict[str, Any],
        receive: Receive,
        reply: Reply,
    ) -> None:
        """Answer with the route's version; when its deployment fails, with what the table falls back to."""
        live = self._live
        body["model"] = f"{live.table.service}@{route.version}"
        try:
            await self._ask(route, path, scope, head, encode(body), receive, reply)
        except UnreachableError as error:
            fallback = live.table.without(route, live.ready)
            self._tell_fallback(route, error, fallback)
            if fallback is None:
                raise HttpError(503, "this version cannot answer now", code="version_unavailable") from error
            reply.take(fallback)
            await self._serve(fallback, path, scope, head, body, receive, reply)

    async def _ask(
        self, route: Route, path: str, scope: Scope, head: Head, data: bytes, receive: Receive, reply: Reply
    ) -> None:
        """Have the route's version answer, and no other."""
        live = self._live
        app = live.ready[route.version]
        live.in_flight[route.version] += 1
        try:
            if app is None:
                await self._engine(forwarded_scope(scope, head, data), replay(data, receive), reply)
                return
            with self._room(route):
                await self._forward(app, path, data, head, receive, reply)
        finally:
            live.in_flight[route.version] -= 1

    @contextmanager
    def _room(self, route: Route) -> Iterator[None]:
        """Keep a challenger that hangs from filling the limit, where another version can answer.

        Raises:
            UnreachableError: so much is under way to challengers that they get no more.
        """
        if self._live.table.without(route, self._live.ready) is None:
            yield
            return
        most = max(1, int(APPS_SHARE * self._live.rules.max_in_flight))
        if self._apart >= most:
            raise UnreachableError(f"{most} requests are under way to challengers, which is their part")
        self._apart += 1
        try:
            yield
        finally:
            self._apart -= 1

    def _tell_fallback(self, route: Route, error: Exception, fallback: Route | None) -> None:
        count = self._fallbacks.due(route.version)
        if count:
            to = "nothing" if fallback is None else f"version {fallback.version}"
            since = f"{count} request{'s' * (count != 1)} since the last such line"
            log.warning(
                "version %s cannot answer (%s): falling back to %s, %s", route.version, error, to, since
            )

    def _models(self) -> bytes:
        live = self._live
        service = live.table.service
        aliases = [alias for alias, version in live.table.aliases.items() if version in live.ready]
        names = [service, *(f"{service}@{name}" for name in [*aliases, *live.ready])]
        now = int(time.time())
        cards = [{"id": name, "object": "model", "created": now, "owned_by": "seatrial"} for name in names]
        return encode({"object": "list", "data": cards})


def _ask_usage(body: dict[str, Any]) -> bool:
    """Have a stream tell its tokens at the end; whether the client had not asked for that."""
    if not body.get("stream") or (body.get("stream_options") or {}).get("include_usage"):
        return False
    body["stream_options"] = {"include_usage": True}
    return True


def _explain(failure: Exception, limit_s: float) -> tuple[HttpError, str]:
    """What the client is told, and what is recorded."""
    if isinstance(failure, HttpError):
        return failure, failure.message
    if isinstance(failure, TimeoutError):
        late = f"no answer within {limit_s:g} s"
        return HttpError(504, late, code="timeout"), late
    return ENGINE_FAILED, f"{type(failure).__name__}: {failure}"[:300]


async def _end(reply: Reply, error: HttpError) -> None:
    """Tell the client: with a status where that is still possible, else with a last event of the stream.

    An answer of another kind is left incomplete: the server then closes the connection.
    """
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            if not reply.has_begun:
                await send_json(reply, error.status, error.body())
            elif reply.is_stream and not reply.is_complete:
                last = b"data: " + error.body() + b"\n\ndata: [DONE]\n\n"
                await reply({"type": "http.response.body", "body": last, "more_body": False})
    except Exception as failure:
        log.info("the client could not be told: %s", failure)
