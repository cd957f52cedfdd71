"""What `seatrial status`, `trials` and `env` make of what the parts say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seatrial.cli import main as cli
from seatrial.config.addresses import Addresses
from seatrial.stack import processes, state
from seatrial.stack.state import State

Run = Callable[..., tuple[int, str]]

SERVICE = {
    "name": "helper",
    "state": "serving",
    "message": "version 1 serves everyone",
    "champion": "1",
    "aliases": {"champion": "1", "challenger": "2"},
    "refused": {"2": "digest of adapter.safetensors differs"},
    "trial": None,
}
COUNTS = ("units", "requests", "exposures", "outcomes", "failures", "fallbacks")
TRIAL = {
    "id": "helper-1", "champion": "1", "challengers": {"challenger": "2"}, "dropped": {},
    "units": 18, "exposures": 18, "outcomes": 18,
    "late_outcomes": 0, "early_outcomes": 1_200, "ignored_outcomes": 3,
    "metric": "resolved", "alpha": 0.05, "interval_kind": "95% confidence sequence", "srm_p": 0.7,
    "verdict": None, "reason": None,
    "waiting_for": "users", "difference": 0.125, "difference_interval": [-0.1, 0.35], "lift": 0.2,
    "interval": None, "arms": [{"name": "champion", "version": "1", "mean": 0.5, **dict.fromkeys(COUNTS, 9)}],
}  # fmt: skip


@pytest.fixture
def run(
    answers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run one command where every part is well and one service is deployed."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "SEATRIAL_CONTROLLER_URL"):
        monkeypatch.setenv(variable, answers.url)
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "")
    answers.of = {
        "/health": (200, "OK"),
        "/api/jobs/": (200, []),
        "/healthz": (200, {"ok": True, "error": None}),
        "/status": (200, {"services": [SERVICE]}),
    }

    def call(*arguments: str) -> tuple[int, str]:
        code = cli.main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def test_services_are_shown_with_their_message_and_with_versions_that_cannot_be_loaded(run: Run) -> None:
    code, said = run("status")
    assert code == 0
    assert "helper\tserving\tversion 1\tversion 1 serves everyone" in said
    assert "helper: version 2: cannot be loaded: digest of adapter.safetensors differs" in said


def test_a_controller_that_answers_but_cannot_work_is_ill_with_its_cause(run: Run, answers: Any) -> None:
    error = "store: the database does not answer"
    for status in (200, 503):
        answers.of["/healthz"] = (status, {"ok": status == 200, "error": error})
        answers.of["/status"] = (503, {"error": error, "services": []})
        code, said = run("status")
        assert code == 1
        assert f"controller\till\t{answers.url}" in said
        assert f"controller: {error}" in said.splitlines()
        assert "services: not known" in said


def test_up_on_a_running_stack_says_what_its_parts_complain_of(
    run: Run, answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This very process stands for the part that runs."""
    monkeypatch.setattr("seatrial.cli.up.SETTLE_S", 0.0)
    answers.of["/healthz"] = (503, {"ok": False, "error": "another controller leads"})
    own = processes.member("controller", os.getpid(), url=answers.url)
    home = tmp_path / "home"
    home.mkdir()
    state.write(home, State("m", "up", own, str(tmp_path), Addresses.resolve(), (own,)))
    code, said = run("up")
    assert code == 0
    assert said.startswith(f"already up in {home}")
    assert "controller is ill: another controller leads" in said.splitlines()


def test_a_refused_token_is_told_with_where_it_comes_from(
    run: Run, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.of["/api/jobs/"] = (401, {})
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    assert "ray: the token is refused: check RAY_AUTH_TOKEN_PATH: /nowhere/token" in run("status")[1]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    code, said = run("status")
    assert code == 1
    assert "ray: the token is refused: check RAY_AUTH_TOKEN: its value" in said
    assert "secret" not in said


def test_status_for_programs_is_one_json_object(run: Run, answers: Any) -> None:
    answers.of["/healthz"] = (200, {"ok": True, "error": "MLflow is away"})
    code, said = run("status", "--json")
    found = json.loads(said)
    assert code == 1
    assert [(part["name"], part["health"]) for part in found["parts"]] == [
        ("mlflow", "running"),
        ("ray", "running"),
        ("controller", "ill"),
    ]
    assert found["services"] == [SERVICE]


def test_a_proxy_in_the_environment_does_not_get_between_us_and_loopback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    assert run("status")[0] == 0
    assert run("trial", "status", "helper")[0] == 0
    exported = json.loads(run("env", "--json")[1])
    assert exported["no_proxy"] == exported["NO_PROXY"] == "intranet.example,127.0.0.1,localhost,::1"


def test_a_trial_is_shown_with_the_difference_that_decides_it(run: Run, answers: Any) -> None:
    answers.of["/status"] = (200, {"services": [{**SERVICE, "trial": TRIAL}]})
    code, said = run("trial", "status", "helper")
    lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in said.splitlines()}
    assert code == 0
    assert lines["difference"] == "+0.125 in [-0.100, +0.350]"
    assert lines["relative lift"] == "+0.200"
    assert lines["left out"] == "outcomes: 1,200 before their user's first request, 3 outside 0 to 1"
    assert lines["metric"] == "resolved at alpha 0.05, 95% confidence sequence"


def test_a_service_that_is_not_deployed_is_named_with_those_that_are(run: Run) -> None:
    code, said = run("trial", "status", "helpr")
    assert code == 2
    assert said.startswith("SERVICE: helpr: not deployed (deployed: helper)")


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://a:hunter2@h/d", "postgresql+psycopg://h/d?password=hunter2"]
)
def test_a_store_with_a_password_is_printed_only_when_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("SEATRIAL_STORE_URL", url)
    for arguments in (["env"], ["env", "--json"]):
        assert "hunter2" not in run(*arguments)[1]
    assert "`seatrial env --secrets` prints it" in run("env")[1]
    assert "hunter2" in run("env", "--secrets")[1]


def test_a_store_without_a_password_is_printed(run: Run) -> None:
    assert "export SEATRIAL_STORE_URL=sqlite:///" in run("env")[1]


def test_the_token_of_the_environment_wins_as_it_does_for_ray(
    run: Run, answers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("of-the-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("SEATRIAL_CONTROLLER_URL", "http://127.0.0.1:9")
    run("status")
    assert answers.headers["Authorization"] == "Bearer of-the-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-environment")
    run("status")
    assert answers.headers["Authorization"] == "Bearer of-the-environment"
    assert "unset RAY_AUTH_TOKEN" in run("env")[1], "so that the file is used"


def test_a_guardrail_that_says_nothing_is_not_called_kept(answers: Any, run: Run) -> None:
    rail = {"name": "cost", "value": 2.0, "limit": 1.1, "p": None, "breached": False}
    arm = {**TRIAL["arms"][0], "guardrails": [{**rail, "silent": "every value is the same"}]}
    answers.of["/api/trials/helper-1"] = (200, {**TRIAL, "arms": [arm]})
    code, said = run("trial", "report", "helper-1")
    line = next(each for each in said.splitlines() if each.startswith("cost"))
    assert code == 0
    assert line.endswith("every value is the same")
    assert "kept" not in line
