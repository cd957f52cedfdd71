"""Who may speak to the controller. Pure: decides over values and the time.

Without a token the controller listens on loopback only and answers those who call it by a loopback name, so
that a page of another site, whose name was made to point here, gets nothing. With a token every route but
`/healthz`, `/login` and the signed `/hooks/mlflow` asks for it: programs send it, people log in with it.

What keeps guesses out is the token's length. Whoever sends many wrong ones is told to wait, whatever they
send; the right one is never refused, so that nobody's wrong ones shut out anybody else.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from starlette.requests import cookie_parser

from seatrial.monitoring.proxy import LOOPBACK

COOKIE = "seatrial_session"
SESSION_S = 12 * 3600.0
OPEN_PATHS = ("/healthz", "/login", "/hooks/mlflow")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
WINDOW_S = 60.0
TRIES = 10
MOST_ADDRESSES = 10_000

# `stranger` may see a route that is open to everybody; with `session` the store is to say whether it is open.
Answer = Literal["ok", "session", "stranger", "unknown_host", "foreign", "login"]


@dataclass(frozen=True)
class Access:
    """What is kept of the token: its SHA-256, and a key for sessions that changes with it."""

    digest: bytes | None = None
    session_key: bytes = b""

    @classmethod
    def of(cls, token: str | None) -> Access:
        """Access with ``token``, or for callers on loopback when there is none."""
        if token is None:
            return cls()
        key = hmac.digest(token.encode(), b"seatrial controller session", "sha256")
        return cls(hashlib.sha256(token.encode()).digest(), key)

    def knows(self, token: str) -> bool:
        """Whether this is the token; takes as long for a wrong one."""
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        return self.digest is not None and hmac.compare_digest(given, self.digest)

    def session(self, now: float) -> str:
        """A new session's cookie value, good for ``SESSION_S`` seconds."""
        text = f"{int(now + SESSION_S)}.{secrets.token_hex(16)}"
        return f"{text}.{self._sign(text)}"

    def session_id(self, value: str, now: float) -> str | None:
        """The id of a session made with this token that has not run out; None when ``value`` is none."""
        text, _, signature = value.rpartition(".")
        signed = self._sign(text).encode()
        if self.digest is None or not hmac.compare_digest(signed, signature.encode("utf-8", "replace")):
            return None
        until, _, session = text.partition(".")
        return session if now < float(until) <= now + SESSION_S else None

    def _sign(self, text: str) -> str:
        return hmac.new(self.session_key, text.encode("utf-8", "replace"), "sha256").hexdigest()


def judge(access: Access, method: str, path: str, headers: Mapping[str, str], now: float) -> Answer:
    """What becomes of a request; ``headers`` has lower-case names."""
    if path == "/hooks/mlflow":  # signed, and sent by a server rather than a browser
        return "ok"
    if access.digest is None and not _is_loopback(headers.get("host", "")):
        return "unknown_host"
    is_bearer = access.knows(token_of(headers))
    if method not in SAFE_METHODS and not is_bearer and _is_foreign(headers):
        return "foreign"
    if access.digest is None or is_bearer:
        return "ok"
    if access.session_id(session_of(headers), now) is not None:
        return "session"
    return "stranger" if path in OPEN_PATHS else "login"


def token_of(headers: Mapping[str, str]) -> str:
    """The bearer token that a program sent; empty without."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def session_of(headers: Mapping[str, str]) -> str:
    """The session's cookie; empty without. Cookies of other servers on this host, which come along whatever
    they look like, hide it not."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def _is_loopback(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:
        return False


def _is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a page of another site makes a browser send this. Browsers always say where a POST is from;
    what says nothing is a program, unless it comes with a session."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    if origin := headers.get("origin"):
        try:
            return urlsplit(origin).netloc != headers.get("host")
        except ValueError:
            return True
    return bool(session_of(headers))


class Tries:
    """Counts wrong tokens by address: after ``TRIES`` in ``WINDOW_S`` seconds it is told to wait."""

    def __init__(self) -> None:
        self._wrong: dict[str, list[float]] = {}

    def wait_s(self, address: str, now: float) -> int:
        """Seconds for which the address is told to wait; 0 when it is not."""
        recent = self._recent(address, now)
        return 0 if len(recent) < TRIES else max(1, int(recent[-TRIES] + WINDOW_S - now) + 1)

    def add(self, address: str, now: float) -> None:
        """One more wrong token. The address that was silent longest is forgotten when there are too many."""
        recent = [*self._recent(address, now), now][-TRIES:]
        self._wrong.pop(address, None)
        self._wrong[address] = recent
        if len(self._wrong) > MOST_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]

    def _recent(self, address: str, now: float) -> list[float]:
        return [at for at in self._wrong.get(address, []) if 0 <= now - at < WINDOW_S]
