"""What the parts of a stack are given, and what is kept of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seatrial.config.addresses import Addresses
from seatrial.errors import SeatrialError
from seatrial.monitoring.probe import Probe
from seatrial.stack import launch, ports
from seatrial.stack.child import Child
from seatrial.stack.parts import Plan, children
from seatrial.stack.ports import Ports

STORE = "postgresql+psycopg://seatrial:secret@db/seatrial"

# A controller that answers 503 with its cause for the first seconds that its argument says.
SLOW = """
import http.server, json, sys, time
began = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_well = time.monotonic() - began > float(sys.argv[2])
        self.send_response(200 if is_well else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"ok": is_well, "error": None if is_well else "standing by"}).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def plan_of(home: Path) -> Plan:
    env = {"SEATRIAL_STORE_URL": STORE, "SEATRIAL_HOME": str(home), "RAY_AUTH_TOKEN_PATH": str(home / "t")}
    addresses = Addresses.resolve(env, home)
    secret = home / "webhook_secret"
    return Plan("mark", Ports(), addresses, home / "seatrial-x", 4, "token", (1, 2, 3, 4), secret, "key")


def test_only_the_controller_is_given_the_stores_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_STORE_URL", STORE)
    envs = {child.name: child.env for child in children(plan_of(tmp_path))}
    assert envs["controller"]["SEATRIAL_STORE_URL"] == STORE
    for part in ("mlflow", "ray"):
        assert not [name for name, value in envs[part].items() if "secret" in value]


def test_only_the_controller_is_given_the_secrets_of_hints_and_logins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("SEATRIAL_CONTROLLER_TOKEN", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY")
    for name in names:
        monkeypatch.setenv(name, "t" * 32)
    envs = {child.name: child.env for child in children(plan_of(tmp_path))}
    assert envs["controller"]["SEATRIAL_CONTROLLER_TOKEN"] == "t" * 32
    assert envs["controller"]["SEATRIAL_WEBHOOK_SECRET_FILE"] == str(tmp_path / "webhook_secret")
    assert envs["mlflow"]["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"] == "key"
    for part in ("mlflow", "ray"):
        assert "t" * 32 not in envs[part].values()
        assert not [name for name in envs[part] if name.startswith("SEATRIAL_WEBHOOK")]


def test_a_secret_of_hints_that_is_given_is_taken_instead_of_the_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_WEBHOOK_SECRET", "s" * 32)
    env = next(child.env for child in children(plan_of(tmp_path)) if child.name == "controller")
    assert env["SEATRIAL_WEBHOOK_SECRET"] == "s" * 32
    assert "SEATRIAL_WEBHOOK_SECRET_FILE" not in env


def test_the_stacks_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    first, second = (launch._plan(tmp_path, Ports(), 1) for _ in range(2))
    assert (first.hook_key, first.hook_secret_path) == (second.hook_key, second.hook_secret_path)
    assert len(first.hook_secret_path.read_text()) == 64
    for name in ("webhook_secret", "mlflow_webhook_key", "ray_token"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


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


@pytest.mark.parametrize("ill_for_s", [1.0, 60.0])
def test_a_part_is_up_once_it_says_that_it_is_well_or_its_own_cause_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ill_for_s: float
) -> None:
    monkeypatch.setattr(launch, "READY_TIMEOUT_S", 5.0 if ill_for_s == 1.0 else 1.5)
    port = ports.inner(1, Ports())[0]
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-c", SLOW, str(port), str(ill_for_s))
    child = Child("controller", command, os.environ, tmp_path / "log", (Probe(f"{url}/healthz"),), url)
    heard: list[launch.Ready] = []
    with child.log.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            if ill_for_s == 1.0:
                launch._wait([(child, process)], heard.append)
                assert [part.name for part in heard] == ["controller"]
                assert heard[0].seconds > 0.5
            else:
                with pytest.raises(SeatrialError, match=r"not ready after .* answers 503 \(standing by\)"):
                    launch._wait([(child, process)], heard.append)
        finally:
            process.kill()
