"""Loopback is never reached through a proxy, whatever the environment says of other addresses."""

from __future__ import annotations

from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Programs read one or the other; those that read both prefer the lower case.
VARIABLES = ("no_proxy", "NO_PROXY")


def direct_loopback(env: Mapping[str, str]) -> dict[str, str]:
    """The two variables with loopback's names added to what ``env`` has in either of them."""
    given = [part.strip() for name in VARIABLES for part in env.get(name, "").split(",")]
    text = ",".join(dict.fromkeys(part for part in (*given, *LOOPBACK) if part))
    text = "*" if "*" in given else text  # for everything; some programs know it only when it stands alone
    return dict.fromkeys(VARIABLES, text)
