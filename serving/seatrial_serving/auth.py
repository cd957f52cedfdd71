"""Who may call: API keys, kept as SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from seatrial.config.service import HttpSection
from seatrial.errors import UserError
from seatrial_serving.errors import HttpError

PREFIX = b"bearer "


class Keys:
    """The keys of one service. Without any, nobody may call unless ``allow_anonymous``."""

    def __init__(self, http: HttpSection) -> None:
        self._digests = tuple((key.sha256.encode(), key.name) for key in http.keys)
        self._anonymous = http.allow_anonymous

    def check(self, authorization: bytes | None, *, host: bytes = b"", origin: bytes | None = None) -> str:
        """The name of the key's holder.

        Every digest is compared in constant time, and all of them each time, so that the time an answer
        takes tells nothing about the keys.

        Raises:
            HttpError: 401, no key or an unknown one; 403, no key and from a page of another site.
        """
        if authorization is None:
            if self._anonymous:
                return _anonymous(host, origin)
            raise HttpError(401, "no API key: send `Authorization: Bearer KEY`", code="missing_api_key")
        key = authorization[len(PREFIX) :] if authorization[: len(PREFIX)].lower() == PREFIX else b""
        digest = hashlib.sha256(key).hexdigest().encode()
        holder = None
        for known, name in self._digests:
            if hmac.compare_digest(known, digest):
                holder = name
        if holder is not None:
            return holder
        if self._anonymous and not self._digests:
            return _anonymous(host, origin)  # openai clients always send some key
        raise HttpError(401, "unknown API key: ask the service's operator for one", code="invalid_api_key")


def _anonymous(host: bytes, origin: bytes | None) -> str:
    """Nobody in particular, on this machine. A browser on it also sends what pages of other sites make it
    send, and calls by the name of such a site what that site's owner has made point here.

    Raises:
        HttpError: 403, such a page.
    """
    name = host.decode("latin-1")
    is_here = not name or is_loopback(_hostname(name))
    if is_here and origin in (None, b"http://" + host, b"https://" + host):
        return "anonymous"
    raise HttpError(
        403, "from a page of another site: without keys only programs here may call", code="foreign"
    )


def _hostname(name: str) -> str | None:
    try:
        return urlsplit(f"//{name}").hostname or "?"
    except ValueError:
        return "?"


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach ``host``; None is every interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "0.0.0.0").is_loopback  # noqa: S104
    except ValueError:
        return False


def require_keys_off_loopback(http: HttpSection, host: str | None) -> None:
    """Refuse an endpoint that strangers could use.

    Raises:
        UserError: keys are off while Serve listens where other machines reach it.
    """
    if http.allow_anonymous and not is_loopback(host):
        raise UserError(
            f"http.allow_anonymous: true: Ray Serve listens on {host}, not on loopback: "
            "give `http.keys`, or start Serve with http_options.host 127.0.0.1"
        )
