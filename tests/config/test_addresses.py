"""What people see of an address."""

from __future__ import annotations

import pytest

from seatrial.config.addresses import public


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
