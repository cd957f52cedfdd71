"""Ask whether a part answers, and what it says of itself."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

PROBE_TIMEOUT_S = 5.0
LONGEST_BODY = 64 * 1024
# A proxy that the environment names must not get between us and a part on loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    """What came back. ``status`` is None when nothing did; ``trouble`` when it is as it should be."""

    status: int | None
    trouble: str | None
    error: str | None = None
    """What the part itself says is wrong, also where it answers 200."""


@dataclass(frozen=True)
class Probe:
    """A GET that a healthy part answers with 200."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def trouble(self, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
        """What is wrong with the answer in a few words, None when it is right."""
        return self.ask(timeout_s).trouble

    def ask(self, timeout_s: float = PROBE_TIMEOUT_S) -> Answer:
        """The answer, or why there is none."""
        request = urllib.request.Request(self.url, headers=dict(self.headers))  # noqa: S310  http(s) by Addresses
        try:
            with _DIRECT.open(request, timeout=timeout_s) as answer:
                return self._answer(answer.status, answer.read(LONGEST_BODY))
        except urllib.error.HTTPError as error:
            with error:
                return self._answer(error.code, _body(error))
        except urllib.error.URLError as error:
            return Answer(None, f"{self.url} does not answer ({error.reason})")
        except (OSError, ValueError, http.client.HTTPException) as error:  # reset, timeout, not HTTP at all
            return Answer(None, f"{self.url} does not answer ({error})")

    def _answer(self, status: int, body: bytes) -> Answer:
        if status == 200:
            return Answer(status, None, _said(body, "error"))
        error = _said(body, "error", "message", "msg")
        return Answer(status, f"{self.url} answers {status}" + (f" ({error})" if error else ""), error)


def _body(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(LONGEST_BODY)
    except OSError:
        return b""


def _said(text: bytes, *keys: str) -> str | None:
    """The first of the keys of a JSON object that says anything."""
    try:
        body = json.loads(text)
    except ValueError:
        return None
    said = next((body[key] for key in keys if body.get(key)), None) if isinstance(body, dict) else None
    return None if said is None else " ".join(str(said).split())[:500]
