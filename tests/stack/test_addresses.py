"""How processes find each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seatrial.config.addresses import Addresses
from seatrial.errors import UserError


def write_state(home: Path, **addresses: str) -> None:
    home.mkdir(parents=True)
    (home / "stack.json").write_text(json.dumps({"addresses": addresses}))


def test_defaults_stand_where_nothing_is_said(tmp_path: Path) -> None:
    found = Addresses.resolve({}, tmp_path)
    assert found.mlflow_uri == "http://127.0.0.1:5000"
    assert found.controller_url == "http://127.0.0.1:8787"
    assert found.home == tmp_path / ".seatrial"
    assert found.store_url == f"sqlite:///{tmp_path}/.seatrial/store.db"
    assert found.ray_token_path is None


def test_the_state_file_is_found_from_a_folder_below(tmp_path: Path) -> None:
    write_state(tmp_path / ".seatrial", mlflow_uri="http://127.0.0.1:5999", ray_token_path="/x/token")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = Addresses.resolve({}, below)
    assert found.mlflow_uri == "http://127.0.0.1:5999"
    assert found.home == tmp_path / ".seatrial"
    assert found.ray_token_path == Path("/x/token")


def test_the_environment_wins_over_the_state_file(tmp_path: Path) -> None:
    write_state(tmp_path / ".seatrial", mlflow_uri="http://127.0.0.1:5999")
    found = Addresses.resolve({"MLFLOW_TRACKING_URI": "https://mlflow.example/"}, tmp_path)
    assert found.mlflow_uri == "https://mlflow.example"


def test_a_named_home_is_used_with_its_state(tmp_path: Path) -> None:
    write_state(tmp_path / "other", serve_url="http://127.0.0.1:8999")
    found = Addresses.resolve({"SEATRIAL_HOME": "other"}, tmp_path)
    assert (found.home, found.serve_url) == (tmp_path / "other", "http://127.0.0.1:8999")


def test_the_environment_made_of_them_gives_them_back(tmp_path: Path) -> None:
    found = Addresses.resolve({"RAY_ADDRESS": "127.0.0.1:6379", "RAY_AUTH_TOKEN_PATH": "/t"}, tmp_path)
    assert Addresses.resolve(found.environment(), tmp_path / "elsewhere") == found


@pytest.mark.parametrize("value", ["127.0.0.1:5000", "nonsense", "http://"])
def test_an_address_without_scheme_or_host_is_one_line_that_names_its_variable(
    tmp_path: Path, value: str
) -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as caught:
        Addresses.resolve({"MLFLOW_TRACKING_URI": value}, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_store_url_is_never_repeated_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SEATRIAL_STORE_URL") as caught:
        Addresses.resolve({"SEATRIAL_STORE_URL": "u:secret@host/db"}, tmp_path)
    assert "secret" not in str(caught.value)


def test_a_broken_state_file_is_named(tmp_path: Path) -> None:
    write_state(tmp_path / ".seatrial")
    (tmp_path / ".seatrial" / "stack.json").write_text("{")
    with pytest.raises(UserError, match=r"stack\.json.*delete it"):
        Addresses.resolve({}, tmp_path)
