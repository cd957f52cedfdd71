"""What the parts of a stack are given, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seatrial.config.addresses import Addresses
from seatrial.stack import launch
from seatrial.stack.parts import Plan, children
from seatrial.stack.ports import Ports

STORE = "postgresql+psycopg://seatrial:secret@db/seatrial"


def plan_of(home: Path) -> Plan:
    env = {"SEATRIAL_STORE_URL": STORE, "SEATRIAL_HOME": str(home), "RAY_AUTH_TOKEN_PATH": str(home / "t")}
    return Plan("mark", Ports(), Addresses.resolve(env, home), home / "seatrial-x", 4, "token", (1, 2, 3, 4))


def test_only_the_controller_is_given_the_stores_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_STORE_URL", STORE)
    envs = {child.name: child.env for child in children(plan_of(tmp_path))}
    assert envs["controller"]["SEATRIAL_STORE_URL"] == STORE
    for part in ("mlflow", "ray"):
        assert not [name for name, value in envs[part].items() if "secret" in value]


def test_replicas_find_the_store_in_the_stacks_state_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    (tmp_path / "stack.json").write_text(json.dumps({"addresses": plan.addresses.values()}))
    ray = next(child for child in children(plan) if child.name == "ray")
    assert Addresses.resolve(ray.env, Path("/")).store_url == STORE


def test_no_part_is_given_a_token_that_would_win_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert not [child.name for child in children(plan_of(tmp_path)) if "RAY_AUTH_TOKEN" in child.env]


def test_a_proxy_keeps_out_of_the_parts_talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.setenv("no_proxy", "")
    for child in children(plan_of(tmp_path)):
        assert child.env["no_proxy"] == child.env["NO_PROXY"] == "intranet.example,127.0.0.1,localhost,::1"


def test_rays_logs_outlive_the_stack_and_replace_the_last_ones(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "seatrial-x"
    for said in ("first", "second"):
        logs = folder / "session_2026" / "logs"
        logs.mkdir(parents=True)
        (logs / f"{said}.out").write_text(said)
        (folder / "session_latest").symlink_to(folder / "session_2026")
        home.mkdir(exist_ok=True)
        gone = {"name": "ray", "pid": 2**22 - 1, "boot": "", "started": 1, "log": "", "url": ""}
        values = {"mark": "m", "phase": "up", "owner": gone, "folder": str(folder), "members": [gone]}
        values["addresses"] = Addresses.resolve({}, tmp_path).values()
        (home / "stack.json").write_text(json.dumps(values))
        assert launch.down(home) == launch.Ended(0, home / "logs" / "ray")
        assert not folder.exists()
        assert [path.name for path in (home / "logs" / "ray").iterdir()] == [f"{said}.out"]
    assert launch.down(home) is None
