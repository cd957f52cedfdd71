"""What `seatrial up` writes down."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from seatrial.config.addresses import Addresses
from seatrial.errors import UserError
from seatrial.stack import state
from seatrial.stack.state import Member, State


def sample(home: Path) -> State:
    member = Member("ray", 12, "boot 1", 3, "/logs/ray.log", "http://127.0.0.1:8265")
    addresses = Addresses.resolve({"RAY_ADDRESS": "127.0.0.1:6379"}, home)
    return State("mark", "up", Member("seatrial up", 1, "boot 1", 2, "", ""), "/tmp/x", addresses, (member,))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    state.write(tmp_path, sample(tmp_path))
    assert state.read(tmp_path) == sample(tmp_path)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    state.write(tmp_path, sample(tmp_path))
    assert stat.S_IMODE(state.path_of(tmp_path).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]


def test_other_commands_find_the_addresses_in_it(tmp_path: Path) -> None:
    home = tmp_path / ".seatrial"
    home.mkdir()
    written = sample(tmp_path)
    state.write(home, written)
    assert Addresses.resolve({}, tmp_path).ray_address == "127.0.0.1:6379"


def test_no_file_is_no_stack(tmp_path: Path) -> None:
    assert state.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"mark": "x"}'])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    state.path_of(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"stack\.json: not a state file"):
        state.read(tmp_path)
