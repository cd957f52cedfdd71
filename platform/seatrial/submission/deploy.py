"""Deploy a service: check it, write it down, and watch the controller make it true."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seatrial.config.addresses import Addresses
from seatrial.config.service import ServiceConfig
from seatrial.errors import RetryableError, SeatrialError, UserError
from seatrial.experiments.namespaces import namespace_of, trouble
from seatrial.submission import controller
from seatrial.submission.submit import LOOPBACK_HOSTS

READY = ("waiting", "serving", "trial")
POLL_S = 0.5
# The controller may be restarted while a deployment is watched.
PATIENCE_S = 30.0


def check(config: ServiceConfig, addresses: Addresses, file: Path) -> None:
    """Everything that can be known before anything is deployed.

    Raises:
        UserError: the base model is not there, strangers could call, or its trials would share users with
            another service's that they are to exclude.
        RetryableError: MLflow, the controller or the store does not answer.
    """
    from seatrial.registry.client import require_mlflow

    host = urlsplit(addresses.serve_url).hostname
    if config.http.allow_anonymous and host not in LOOPBACK_HOSTS:
        raise UserError(
            f"{file}: http.allow_anonymous: true: {addresses.serve_url} is not on loopback: give `http.keys`"
        )
    require_mlflow(addresses.mlflow_uri)
    check_base(config.engine.base, addresses, file)
    controller.status(addresses)
    check_namespace(config, addresses, file)


def check_namespace(config: ServiceConfig, addresses: Addresses, file: Path) -> None:
    """The service's part of a namespace must be its own.

    Raises:
        UserError: another service's part overlaps it.
        RetryableError: the store does not answer.
    """
    from seatrial.store import Store

    mine = namespace_of(config.trial.model_dump(mode="json"))
    if mine is None:
        return
    store = Store(addresses.store_url)
    try:
        store.migrate()
        rows = store.services()
    finally:
        store.close()
    found = {name: namespace_of(row["config"]["trial"]) for name, row in rows.items()
             if name != config.name and row["deleted_at"] is None}  # fmt: skip
    said = trouble(mine, {name: each for name, each in found.items() if each is not None})
    if said is not None:
        raise UserError(f"{file}: {said}")


def check_base(base: str, addresses: Addresses, file: Path) -> None:
    """The registered version or the directory must be there; hub names are left to the replica.

    Raises:
        UserError: it is not.
    """
    from seatrial.registry import versions

    if base.startswith("models:"):
        try:
            versions.pin(base, uri=addresses.mlflow_uri)
        except UserError as error:
            raise UserError(f"{file}: engine.base: {error}") from error
        return
    folder = Path(base).expanduser()
    is_path = base.startswith((".", "/", "~")) or folder.exists() or base.count("/") > 1
    if is_path and not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no directory"
        raise UserError(
            f"{file}: engine.base: {base}: {what}: give a model's directory, hub name or models:/ ref"
        )


def put(config: ServiceConfig, addresses: Addresses, *, now: float) -> dict[str, Any]:
    """Write the service into the store, and return its row.

    Raises:
        UserError: the base's alias names nothing.
        RetryableError: the store or MLflow does not answer.
    """
    from seatrial.store import Store

    pinned = absolute(config, addresses)
    store = Store(addresses.store_url)
    try:
        store.migrate()
        store.put_service(config.name, pinned.model_dump(mode="json"), now=now)
        return store.services()[config.name]
    finally:
        store.close()


def stored(name: str, addresses: Addresses) -> dict[str, Any]:
    """The configuration that the service has now; empty when it is not deployed.

    Raises:
        RetryableError: the store does not answer.
    """
    from seatrial.store import Store

    store = Store(addresses.store_url)
    try:
        return dict(store.services().get(name, {}).get("config", {}))
    finally:
        store.close()


def absolute(config: ServiceConfig, addresses: Addresses) -> ServiceConfig:
    """The same with a base that is one and the same for every process at any time.

    An alias gives way to the version that it names now: replicas that start after it was moved would have
    another base than their neighbours, and refuse every adapter. A directory's path becomes absolute.
    """
    from seatrial.registry import versions

    base = config.engine.base
    if base.startswith("models:"):
        ref = versions.pin(base, uri=addresses.mlflow_uri)
        base = f"models:/{ref.name}/{ref.version}"
    elif Path(base).expanduser().is_dir():
        base = str(Path(base).expanduser().absolute())
    engine = config.engine.model_copy(update={"base": base})
    return config.model_copy(update={"engine": engine})


def await_ready(
    name: str, written_at: float, addresses: Addresses, timeout_s: float, say: Callable[[str], None]
) -> Mapping[str, Any]:
    """Watch until the engine of this configuration is up, and return the service's status.

    ``say`` hears each new message of the controller.

    Raises:
        SeatrialError: the deployment failed; the message is the cause.
        RetryableError: not ready in time, or the controller is gone; the deployment goes on.
    """
    began = heard = time.monotonic()
    last = ""
    while time.monotonic() - began < timeout_s:
        try:
            found: Mapping[str, Any] | None = controller.service(addresses, name)
            heard = time.monotonic()
        except RetryableError:
            if time.monotonic() - heard > PATIENCE_S:
                raise
            found = None
        if found is not None:
            if found["message"] and found["message"] != last:
                last = found["message"]
                say(f"{found['state']}: {last}")
            if found["config_at"] >= written_at and found["state"] in READY:
                return found
            if found["config_at"] >= written_at and found["state"] == "failed":
                raise SeatrialError(f"{name}: failed: {last}")
        time.sleep(POLL_S)
    raise RetryableError(f"{name}: not ready after {timeout_s:.0f} s ({last}): watch `seatrial status`")


def curl_line(config: ServiceConfig, url: str) -> str:
    """A request to try, ready to be pasted; ``url`` is where the service answers."""
    body = {
        "model": config.name,
        "user": "ada",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": min(32, config.http.max_tokens),
    }
    key = "" if config.http.allow_anonymous else ' -H "authorization: Bearer $SEATRIAL_KEY"'
    asked = f"-H 'content-type: application/json'{key} -d '{json.dumps(body)}'"
    return f"curl -i {url}/v1/chat/completions {asked}"
