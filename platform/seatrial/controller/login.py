"""What stands before every route of the controller: who may pass, the page to log in, headers for safety."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seatrial.controller.auth import COOKIE, OPEN_PATHS, SESSION_S, Access, Tries, judge, session_of, token_of
from seatrial.controller.body import read_bounded
from seatrial.controller.sessions import Sessions
from seatrial.errors import SeatrialError

WEB = Path(__file__).with_name("web")
# In the scope of what the gate lets through: `session` for a person, `stranger` where nobody was asked.
CALLER = "seatrial.caller"
MOST_FORM_BYTES = 4096
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
# A picture that somebody opens by itself has its styles within.
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": browsers then hide where a form of our own comes from.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Gate:
    """ASGI application that lets through to ``app`` who may pass; answers `/login` and `/logout` itself."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        sessions: Sessions,
        *,
        is_https: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._access = access
        self._sessions = sessions
        self._is_https = is_https
        self._clock = clock
        self._tries = Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass the start and end of the server on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(MutableHeaders(raw=message["headers"]))
            await send(message)

        try:
            answer = await self._answer(Request(scope, receive))
        except SeatrialError as error:  # the store, which knows the sessions, does not answer
            answer = _refuse(503, f"sessions: {error}: try again in a moment")
        await (answer or self._app)(scope, receive, send_with_headers)

    async def _answer(self, request: Request) -> Response | None:
        """The answer to what may not pass and to what is the gate's own; None lets it pass."""
        # Not the request's URL, into which the client's Host goes.
        path, now = request.scope["path"], self._clock()
        verdict = judge(self._access, request.method, path, request.headers, now)
        if verdict == "unknown_host":
            return _refuse(
                403, "Host: not a loopback name: set SEATRIAL_CONTROLLER_TOKEN to be reached by it"
            )
        if verdict == "foreign":
            return _refuse(403, "Origin: another site: send this from the controller's own pages")
        if verdict == "session" and not await self._is_open(request, now):
            verdict = "stranger" if path in OPEN_PATHS else "login"
        if verdict == "login":
            return self._ask_to_log_in(request, now)
        request.scope[CALLER] = verdict
        if self._access.digest is None or path not in ("/login", "/logout"):
            return None
        if path == "/login":
            return await self._log_in(request, now) if request.method == "POST" else _page()
        if request.method != "POST":
            return _refuse(405, "POST: send it so", Allow="POST")
        return await self._log_out(request, now)

    async def _is_open(self, request: Request, now: float) -> bool:
        """Whether the session that the request comes with is open. What is open to all waits for no store."""
        session = self._access.session_id(session_of(request.headers), now)
        if session is None or request.scope["path"] == "/login":
            return False
        try:
            return await run_in_threadpool(self._sessions.is_open, session, now)
        except SeatrialError:
            if request.scope["path"] in OPEN_PATHS:
                return False
            raise

    def _ask_to_log_in(self, request: Request, now: float) -> Response:
        if token_of(request.headers) and (wait_s := self._count(request, now)):
            return _refuse(429, "too many wrong tokens: wait", **{"Retry-After": str(wait_s)})
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            query = request.scope["query_string"].decode("latin-1")
            wanted = request.scope["path"] + (f"?{query}" if query else "")
            return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 303)
        return _refuse(
            401,
            "Authorization: missing or wrong: send `Bearer` and SEATRIAL_CONTROLLER_TOKEN",
            **{"WWW-Authenticate": 'Bearer realm="seatrial"'},
        )

    def _count(self, request: Request, now: float) -> int:
        """Seconds to wait after one more wrong token from there; 0 when they may go on."""
        address = request.client.host if request.client else ""
        wait_s = self._tries.wait_s(address, now)
        if not wait_s:
            self._tries.add(address, now)
        return wait_s

    async def _log_in(self, request: Request, now: float) -> Response:
        body = await read_bounded(request, MOST_FORM_BYTES)
        if body is None:
            return _page("That is too long for a token.", 413)
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not self._access.knows(token.strip()):
            if wait_s := self._count(request, now):
                return _page(f"Too many wrong tokens: wait {wait_s} s.", 429, **{"Retry-After": str(wait_s)})
            return _page("That is not the token.", 401)
        return await self._begin(request, now)

    async def _begin(self, request: Request, now: float) -> Response:
        cookie = self._access.session(now)
        try:
            await run_in_threadpool(self._sessions.begin, str(self._access.session_id(cookie, now)), now)
        except SeatrialError:
            return _page("The store, which keeps who is logged in, does not answer: try again.", 503)
        answer = RedirectResponse(own_path(request.query_params.get("next", "")), 303)
        is_secure = self._is_https or request.scope["scheme"] == "https"
        answer.set_cookie(
            COOKIE, cookie, max_age=int(SESSION_S), httponly=True, samesite="strict", secure=is_secure
        )
        return answer

    async def _log_out(self, request: Request, now: float) -> Response:
        session = self._access.session_id(session_of(request.headers), now)
        if session is not None:
            await run_in_threadpool(self._sessions.end, session)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


def own_path(wanted: str) -> str:
    """Where to go after the login: ``wanted`` if it is a path of ours, else the pages."""
    parts = urlsplit(wanted)
    is_ours = wanted.isprintable() and wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return wanted if is_ours and not parts.netloc and not parts.scheme else "/trials"


def _add_headers(headers: MutableHeaders) -> None:
    is_picture = headers.get("content-type", "").startswith("image/svg+xml")
    headers.setdefault("Content-Security-Policy", PICTURE_POLICY if is_picture else POLICY)
    for name, value in HEADERS.items():
        headers.setdefault(name, value)


def _refuse(status: int, error: str, **headers: str) -> Response:
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def _page(trouble: str | None = None, status: int = 200, **headers: str) -> Response:
    template, style = _sources()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # The stylesheet's own address asks for a login, so it stands within, named by its digest.
    headers["Content-Security-Policy"] = POLICY.replace("style-src 'self'", f"style-src 'sha256-{digest}'")
    shown = f'<p class="bad" role="alert">{trouble}</p>' if trouble else ""
    return HTMLResponse(template.replace("{style}", style).replace("{trouble}", shown), status, headers)


@cache
def _sources() -> tuple[str, str]:
    return tuple((WEB / name).read_text(encoding="utf-8") for name in ("login.html", "style.css"))  # type: ignore[return-value]
