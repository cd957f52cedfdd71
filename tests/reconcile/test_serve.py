"""Ray Serve's REST API where Ray, or what is needed to speak to it, is not as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError
from seatrial.reconcile.serve import ServeApi


def test_a_token_that_cannot_be_read_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray then says that one is missing."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    env = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_AUTH_TOKEN_PATH": str(tmp_path)}
    serve = ServeApi.of(Addresses.resolve(env, tmp_path))
    with pytest.raises(RetryableError, match="does not answer"):
        serve.apps()
    serve.close()
