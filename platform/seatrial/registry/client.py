"""The connection to MLflow, and what its errors mean."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import httpx

from seatrial.config.addresses import Addresses, public, without_passwords
from seatrial.errors import RetryableError, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_TIMEOUT_S = 5.0
# MLflow's own defaults, 7 retries of 120 s each, would hold up a pass of the controller for a quarter of an
# hour. Read anew by MLflow at each request; what the environment says already is left as it is.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# A server that keeps its artifacts in an object store moves a whole file before its first byte or answer.
TRANSFER_TIMEOUT_S = 600
# MLflow's codes for "there is no such thing" and "nothing can have such a name".
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
TEXT_CHARS = 400

_transfers = 0
_transfers_lock = threading.Lock()


class NotRegisteredError(UserError):
    """The registry has no such model, version or alias."""


@cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes 60 ms, and the controller asks every other second."""
    return httpx.create_ssl_context()


def connect(uri: str | None = None) -> MlflowClient:
    """A client of the MLflow server at ``uri``, or at the address that the environment gives.

    Raises:
        RetryableError: the server does not answer; MLflow's own client would retry for minutes.
    """
    uri = uri or Addresses.resolve().mlflow_uri
    require_mlflow(uri)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def require_mlflow(uri: str) -> None:
    """Ask the server whether it is there.

    Raises:
        RetryableError: it does not answer with its health page.
    """
    remedy = "run `seatrial up`, or set MLFLOW_TRACKING_URI to a running server"
    where = f"MLFLOW_TRACKING_URI: {public(uri)}"
    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S, verify=_tls())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RetryableError(f"{where}: does not answer ({error}): {remedy}") from error
    if answer.status_code >= 500:
        raise RetryableError(f"{where}: answers {answer.status_code}: {remedy}")


@contextmanager
def asking(absent: Callable[[str], UserError] | None = None) -> Iterator[None]:
    """Sort the errors of MLflow, and of the libraries that move its artifacts, by who can mend them.

    ``absent`` makes the error for what the registry does not have, from MLflow's reason for it.

    Raises:
        UserError: the one of ``absent``.
        RetryableError: anything else, in one line.
    """
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if absent is not None and error.error_code in ABSENT:
            raise absent(one_line(error)) from error
        raise RetryableError(f"MLflow: {one_line(error)}") from error
    except requests.RequestException as error:
        raise RetryableError(f"MLflow: {one_line(error)}") from error


@contextmanager
def transferring() -> Iterator[None]:
    """Give requests the time that whole files take, unless the environment sets a time of its own."""
    global _transfers
    with _transfers_lock:
        if os.environ.get(TIMEOUT) == SETTINGS[TIMEOUT]:
            os.environ[TIMEOUT] = str(TRANSFER_TIMEOUT_S)
        _transfers += 1
    try:
        yield
    finally:
        with _transfers_lock:
            _transfers -= 1
            if not _transfers and os.environ.get(TIMEOUT) == str(TRANSFER_TIMEOUT_S):
                os.environ[TIMEOUT] = SETTINGS[TIMEOUT]


def experiment_of(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made if there is none, and restored if somebody deleted it."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)  # made by somebody else just now
        assert found is not None  # noqa: S101
    if found.lifecycle_stage == "deleted":
        try:
            client.restore_experiment(found.experiment_id)
        except MlflowException:
            found = client.get_experiment(found.experiment_id)
            if found.lifecycle_stage == "deleted":  # else restored by somebody else just now
                raise
    return str(found.experiment_id)


def one_line(error: BaseException) -> str:
    """An error's text in one line without any password, or the name of its kind when it has none."""
    text = " ".join(str(getattr(error, "message", None) or error).split())
    return (without_passwords(text) or type(error).__name__)[:TEXT_CHARS]
