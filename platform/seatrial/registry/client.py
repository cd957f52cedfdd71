"""The connection to MLflow."""

from __future__ import annotations

import os
import ssl
from functools import cache
from typing import TYPE_CHECKING

import httpx

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_TIMEOUT_S = 5.0


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
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def require_mlflow(uri: str) -> None:
    """Ask the server whether it is there.

    Raises:
        RetryableError: it does not answer with its health page.
    """
    remedy = "run `seatrial up`, or set MLFLOW_TRACKING_URI to a running server"
    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S, verify=_tls())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RetryableError(f"MLFLOW_TRACKING_URI: {uri}: does not answer ({error}): {remedy}") from error
    if answer.status_code >= 500:
        raise RetryableError(f"MLFLOW_TRACKING_URI: {uri}: answers {answer.status_code}: {remedy}")
