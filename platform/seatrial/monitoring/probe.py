"""Ask whether a part answers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from seatrial.config.addresses import Addresses

PROBE_TIMEOUT_S = 5.0
# A proxy that the environment names must not get between us and a part on loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Probe:
    """A GET that a healthy part answers with 200."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def trouble(self, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
        """What is wrong with the answer in a few words, None when it is right."""
        request = urllib.request.Request(self.url, headers=dict(self.headers))  # noqa: S310  http(s) by Addresses
        try:
            with _DIRECT.open(request, timeout=timeout_s) as answer:
                return None if answer.status == 200 else f"{self.url} answers {answer.status}"
        except urllib.error.HTTPError as error:
            with error:
                return f"{self.url} answers {error.code}{_said(error)}"
        except urllib.error.URLError as error:
            return f"{self.url} does not answer ({error.reason})"
        except (OSError, ValueError) as error:  # reset, timeout, not HTTP at all
            return f"{self.url} does not answer ({error})"


def bearer(addresses: Addresses) -> dict[str, str]:
    """The header with Ray's token; empty where no token is kept."""
    path = addresses.ray_token_path
    if path is None or not path.is_file():
        return {}
    return {"Authorization": f"Bearer {path.read_text(encoding='utf-8').strip()}"}


def _said(error: urllib.error.HTTPError) -> str:
    try:
        body = json.loads(error.read(4096))
    except (OSError, ValueError):
        return ""
    message = body.get("message") or body.get("error") or body.get("msg") if isinstance(body, dict) else None
    return f" ({str(message).splitlines()[0][:120]})" if message else ""
