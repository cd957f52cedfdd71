"""Ask a deployed service: rows of prompts or messages in, texts out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from mlflow.protos import databricks_pb2 as codes

from seatrial.errors import RetryableError, UserError
from seatrial.plugin.errors import DeploymentError

API_KEY = "SEATRIAL_API_KEY"
TIMEOUT_S = 300.0
CODES = {
    400: codes.INVALID_PARAMETER_VALUE,
    401: codes.UNAUTHENTICATED,
    403: codes.PERMISSION_DENIED,
    404: codes.RESOURCE_DOES_NOT_EXIST,
    413: codes.INVALID_PARAMETER_VALUE,
    422: codes.INVALID_PARAMETER_VALUE,
    429: codes.REQUEST_LIMIT_EXCEEDED,
    503: codes.TEMPORARILY_UNAVAILABLE,
}


def rows_of(inputs: Any) -> list[dict[str, Any]]:
    """One dict a request, from a DataFrame, a dict, a list of dicts, or the path of a CSV or JSON file.

    Raises:
        UserError: anything else, no rows, or a row without exactly one of `prompt` and `messages`, or one
            that asks for a stream.
    """
    import pandas as pd

    if isinstance(inputs, str | Path):
        inputs = _read(Path(inputs))
    if isinstance(inputs, pd.DataFrame):
        inputs = [_given(row) for row in inputs.to_dict("records")]
    elif isinstance(inputs, Mapping):
        inputs = [dict(inputs)]
    if not isinstance(inputs, list) or not inputs or not all(isinstance(each, Mapping) for each in inputs):
        raise UserError("inputs: no rows: give a DataFrame, a dict, a list of dicts, or a CSV or JSON file")
    for number, row in enumerate(inputs, start=1):
        if ("prompt" in row) == ("messages" in row):
            raise UserError(f"inputs: row {number}: give either `prompt` or `messages`")
        if row.get("stream"):
            raise UserError(
                f"inputs: row {number}: stream: {row['stream']}: answers come whole: leave it out"
            )
    return [dict(row) for row in inputs]


def ask(service: str, url: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers in the rows' order: text, version, request_id. All other fields go into the request.

    Raises:
        UserError: the key is no header's value.
        RetryableError: the service does not answer.
        DeploymentError: it refuses a request.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key.isascii():
        raise UserError(f"{API_KEY}: not plain text: give a key that `seatrial key` printed")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(headers=headers, timeout=TIMEOUT_S) as client:
        return [_answer(client, service, url, row) for row in rows]


def _answer(client: httpx.Client, service: str, url: str, row: Mapping[str, Any]) -> dict[str, Any]:
    route = "completions" if "prompt" in row else "chat/completions"
    try:
        answer = client.post(f"{url}/v1/{route}", json={"model": service, **row})
    except httpx.HTTPError as error:
        raise RetryableError(f"{url}: does not answer ({error}): see `seatrial status`") from error
    if answer.status_code != 200:
        hint = f": set {API_KEY} to one of its keys" if answer.status_code == 401 else ""
        said = " ".join(answer.text.split())[:300]
        code = CODES.get(answer.status_code, codes.INTERNAL_ERROR)
        raise DeploymentError(f"{url}: answers {answer.status_code} ({said}){hint}", error_code=code)
    try:
        choice = answer.json()["choices"][0]
        text = choice["text"] if "prompt" in row else choice["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise RetryableError(f"{url}: is no service ({error!r}): check SEATRIAL_SERVE_URL") from error
    return {
        "text": text,
        "version": answer.headers.get("x-seatrial-version"),
        "request_id": answer.headers.get("x-seatrial-request-id"),
    }


def _read(path: Path) -> Any:
    import pandas as pd

    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_json(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"inputs: {path}: cannot be read ({why}): give a CSV or JSON file") from error


def _given(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The cells that hold something: a table has every column in every row, and whole numbers as floats."""
    cells = {str(name): value for name, value in row.items() if value is not None and value == value}
    whole = {name: int(value) for name, value in cells.items() if _is_whole(value)}
    return cells | whole


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
