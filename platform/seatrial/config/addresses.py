"""Where the parts of a running Seatrial answer, and how every process finds them.

Each address comes from its environment variable, else from the `stack.json` that `seatrial up` wrote, else
it is the default. The stack puts the variables into the environment of what it starts, so that jobs and
replicas on Ray see the same ones.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seatrial.errors import UserError

HOME_NAME = ".seatrial"
STATE_NAME = "stack.json"

DEFAULT_MLFLOW_URI = "http://127.0.0.1:5000"
DEFAULT_RAY_DASHBOARD = "http://127.0.0.1:8265"
DEFAULT_SERVE_URL = "http://127.0.0.1:8000"
DEFAULT_CONTROLLER_URL = "http://127.0.0.1:8787"

# What stands between `//` and the host of a URL.
PRIVATE = re.compile(r"://[^/?#\s]*@")

VARIABLES = {
    "mlflow_uri": "MLFLOW_TRACKING_URI",
    "ray_dashboard": "RAY_API_SERVER_ADDRESS",
    "serve_url": "SEATRIAL_SERVE_URL",
    "controller_url": "SEATRIAL_CONTROLLER_URL",
    "store_url": "SEATRIAL_STORE_URL",
    "home": "SEATRIAL_HOME",
    "ray_token_path": "RAY_AUTH_TOKEN_PATH",
    "ray_address": "RAY_ADDRESS",
}


@dataclass(frozen=True)
class Addresses:
    """Every address that a part needs of another. URLs carry no trailing slash."""

    mlflow_uri: str
    """Tracking server and registry."""
    ray_dashboard: str
    """Ray's dashboard: the Jobs API and Serve's REST API."""
    serve_url: str
    """The services' HTTP endpoint."""
    controller_url: str
    """The controller's `/healthz` and `/status`."""
    store_url: str
    """SQLAlchemy URL of the store."""
    home: Path
    """Absolute directory of the local stack's state, logs and files."""
    ray_token_path: Path | None = None
    """File with Ray's token; without it Ray looks in its own places."""
    ray_address: str | None = None
    """`host:port` of the Ray head, for drivers that join the cluster."""

    @classmethod
    def resolve(cls, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Addresses:
        """Find every address from ``env`` (the process's own), the state file above ``cwd``, or defaults.

        Raises:
            UserError: a URL without scheme or host, or a state file that is no JSON.
        """
        env = os.environ if env is None else env
        cwd = Path.cwd() if cwd is None else cwd
        home = _home(env, cwd)
        recorded = read_recorded(home)
        home_default = {"store_url": f"sqlite:///{home / 'store.db'}", "home": str(home)}
        defaults = {
            "mlflow_uri": DEFAULT_MLFLOW_URI,
            "ray_dashboard": DEFAULT_RAY_DASHBOARD,
            "serve_url": DEFAULT_SERVE_URL,
            "controller_url": DEFAULT_CONTROLLER_URL,
            **home_default,
        }
        given = {field: env[name] for field, name in VARIABLES.items() if env.get(name)}
        return cls.of({**defaults, **recorded, **given, "home": str(home)})

    @classmethod
    def of(cls, values: Mapping[str, str | None]) -> Addresses:
        """Build from plain text values, as a state file holds them; checks every URL."""
        token = values.get("ray_token_path")
        return cls(
            mlflow_uri=_url("mlflow_uri", values["mlflow_uri"]),
            ray_dashboard=_url("ray_dashboard", values["ray_dashboard"]),
            serve_url=_url("serve_url", values["serve_url"]),
            controller_url=_url("controller_url", values["controller_url"]),
            store_url=_url("store_url", values["store_url"]),
            home=Path(values["home"] or HOME_NAME).absolute(),
            ray_token_path=Path(token).expanduser().absolute() if token else None,
            ray_address=values.get("ray_address") or None,
        )

    def values(self) -> dict[str, str | None]:
        """Plain text values: what :meth:`of` takes."""
        return {name: None if value is None else str(value) for name, value in asdict(self).items()}

    def environment(self) -> dict[str, str]:
        """The variables that tell another process these addresses."""
        return {VARIABLES[name]: value for name, value in self.values().items() if value is not None}


def read_recorded(home: Path) -> dict[str, str]:
    """The addresses in ``home``'s state file; empty when there is no stack."""
    path = home / STATE_NAME
    try:
        state: Any = json.loads(path.read_text(encoding="utf-8"))
        recorded = state["addresses"]
        return {name: str(value) for name, value in recorded.items() if name in VARIABLES and value}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a state file of `seatrial up` ({error!r}): delete it") from error


def public(url: str) -> str:
    """The URL as people may see it: without the user name and password that it may hold."""
    private = urlsplit(url).netloc.rpartition("@")[0]
    return url.replace(f"{private}@", "", 1) if private else url


def without_passwords(text: str) -> str:
    """What somebody says, without the user names and passwords of the URLs in it."""
    return PRIVATE.sub("://", text)


def _home(env: Mapping[str, str], cwd: Path) -> Path:
    if env.get("SEATRIAL_HOME"):
        return (cwd / Path(env["SEATRIAL_HOME"]).expanduser()).absolute()
    for folder in (cwd, *cwd.absolute().parents):
        if (folder / HOME_NAME / STATE_NAME).is_file():
            return (folder / HOME_NAME).absolute()
    return (cwd / HOME_NAME).absolute()


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and (parts.netloc or parts.scheme.startswith("sqlite")))


def _url(field: str, value: str | None) -> str:
    text = (value or "").strip()
    if not _is_url(text):
        # It may hold a password, which stands before an `@`; the store's is not shown at all.
        shown = "the value" if field == "store_url" else repr(text.rpartition("@")[2])
        like = "sqlite:///path/store.db" if field == "store_url" else "http://127.0.0.1:5000"
        raise UserError(f"{VARIABLES[field]}: {shown} is no URL: write it like {like}")
    return text if field == "store_url" else text.rstrip("/")
