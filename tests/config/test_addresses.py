"""What people see of an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.config.addresses import Addresses, public
from seatrial.errors import UserError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://joe:hunter2@mlflow.example/a?b#c@d", "https://mlflow.example/a?b#c@d"),
        ("https://token@mlflow.example:8443/x", "https://mlflow.example:8443/x"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert public(url) == shown


@pytest.mark.parametrize("text", ["http://[::1", "joe:hunter2@mlflow.example:5000", "//joe:hunter2@mlflow"])
def test_what_is_no_url_is_one_line_without_a_password(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: .* is no URL") as caught:
        Addresses.resolve({"MLFLOW_TRACKING_URI": text}, tmp_path)
    assert "hunter2" not in str(caught.value)
