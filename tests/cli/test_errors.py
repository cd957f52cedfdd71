"""Bad input gets one line for each problem and exit code 2, through the real command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seatrial.cli import main as cli
from seatrial.config.addresses import VARIABLES

Run = Callable[..., tuple[int, str, list[str]]]

SERVICE = """\
name: helper
engine:
  base: models:/tiny-base/1
http:
  allow_anonymous: true
"""
RECIPE = """\
name: tiny
service: helper
model: {base: models:/tiny-base/1}
method: {type: lora}
data: {train: data.jsonl}
run: {steps: 10}
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command in an empty folder where nothing answers."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "SEATRIAL_CONTROLLER_URL"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        code = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return call


def test_every_bad_field_of_a_service_is_told_at_once(run: Run, tmp_path: Path) -> None:
    bad = SERVICE.replace("name: helper", "name: Helper").replace("base:", "bass:") + "  max_tokens: none\n"
    (tmp_path / "service.yaml").write_text(bad)
    for command in ("deploy", "validate"):
        code, _, said = run(command, "service.yaml")
        assert code == 2
        assert [line.split(": ")[:2] for line in said] == [
            ["service.yaml:1", "name"],
            ["service.yaml:2", "engine.base"],
            ["service.yaml:3", "engine.bass"],
            ["service.yaml:6", "http.max_tokens"],
        ]
        assert "did you mean `base`?" in said[2]


@pytest.mark.parametrize("option", ["--no-queue", "--dry-run"])
def test_a_secret_in_a_recipe_is_refused_with_and_without_the_queue(
    run: Run, tmp_path: Path, option: str
) -> None:
    secret = RECIPE.replace("steps: 10", "steps: 10, storage: 's3://joe:hunter2@host/x'")
    (tmp_path / "recipe.yaml").write_text(secret)
    code, _, said = run("train", option, "recipe.yaml")
    assert code == 2
    assert said[0].startswith("recipe.run.storage: looks like a password in a URL")
    assert "hunter2" not in said[0]


def test_every_bad_field_of_a_recipe_is_told_at_once(run: Run, tmp_path: Path) -> None:
    bad = RECIPE.replace("steps: 10", "steps: 0, epoch: 1").replace("type: lora", "type: lore")
    (tmp_path / "recipe.yaml").write_text(bad)
    code, _, said = run("train", "recipe.yaml")
    assert code == 2
    assert [line.split(": ")[:2] for line in said] == [
        ["recipe.yaml:4", "method.type"],
        ["recipe.yaml:6", "run.epoch"],
        ["recipe.yaml:6", "run.steps"],
    ]


def test_several_files_are_validated_in_one_go(run: Run, tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(SERVICE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    pretrain = "register_as: base\n" + "".join(
        line + "\n" for line in RECIPE.splitlines() if line.split(":")[0] in ("name", "data", "run")
    )
    (tmp_path / "pretrain.yaml").write_text(pretrain)
    code, printed, said = run("validate", "service.yaml", "recipe.yaml", "pretrain.yaml")
    assert (code, said) == (0, [])
    assert printed.count(": fine") == 3


@pytest.mark.parametrize("command", ["train", "deploy", "validate"])
def test_a_file_that_is_not_there_is_named(run: Run, command: str) -> None:
    code, _, said = run(command, "missing.yaml")
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith("missing.yaml: cannot be read")


def test_a_service_file_is_no_recipe(run: Run, tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(SERVICE)
    code, _, said = run("train", "service.yaml")
    assert (code, len(said)) == (2, 1)
    assert "`seatrial deploy service.yaml`" in said[0]


def test_a_recipe_is_no_service_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code, _, said = run("deploy", "recipe.yaml")
    assert (code, len(said)) == (2, 1)
    assert "`seatrial train recipe.yaml`" in said[0]


def test_a_folder_that_cannot_hold_a_stack_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, said = run("up", "--home", str(tmp_path / "file"))
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith(f"--home: {tmp_path}/file: cannot be used (")


def test_defaults_are_not_passed_off_as_a_stack(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    code, printed, said = run("env")
    assert code == 0
    assert "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000" in printed
    assert said == [
        f"no stack is up in {tmp_path}/.seatrial: these are the defaults: `seatrial up` starts one"
    ]


def test_no_mlflow_is_one_line_with_the_remedy(run: Run, tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(SERVICE)
    for command in (["deploy", "service.yaml"], ["promote", "helper", "1"], ["rollback", "helper"]):
        code, _, said = run(*command)
        assert (code, len(said)) == (75, 1)
        assert said[0].startswith("MLFLOW_TRACKING_URI: http://127.0.0.1:9: does not answer")
        assert "seatrial up" in said[0]
    assert not (tmp_path / "home").exists(), "nothing may be written for a service that is refused"


def test_no_ray_is_one_line_with_the_remedy(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code, _, said = run("train", "recipe.yaml")
    assert (code, len(said)) == (75, 1)
    assert said[0].startswith("RAY_API_SERVER_ADDRESS: http://127.0.0.1:9/api/version does not answer")


def test_a_store_without_tables_is_one_line_with_the_remedy(run: Run) -> None:
    code, _, said = run("power", "helper")
    assert (code, len(said)) == (75, 1)
    assert said[0].startswith("store: no such table: services: the controller makes the tables: run")


def test_no_controller_is_one_line_with_the_remedy(run: Run) -> None:
    code, _, said = run("trial", "status", "helper")
    assert (code, len(said)) == (75, 1)
    assert said[0].startswith("SEATRIAL_CONTROLLER_URL: http://127.0.0.1:9/status: does not answer")


def test_strangers_may_only_call_on_loopback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_SERVE_URL", "https://models.example")
    (tmp_path / "service.yaml").write_text(SERVICE)
    code, _, said = run("deploy", "service.yaml")
    assert (code, len(said)) == (2, 1)
    assert "http.allow_anonymous: true: https://models.example is not on loopback" in said[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'trial', 'train'? See"),
        (["up", "--mlflow-prt", "1"], "No such option: --mlflow-prt"),
        (["up", "--mlflow-port", "high"], "Invalid value for '--mlflow-port'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["jobs"], "Missing command. See `seatrial jobs --help`"),
        (["data", "unknown", "x.jsonl"], "data: unknown: unknown: give one of stdlib-docs"),
        (["schema", "thing"], "Invalid value for 'kind': 'thing' is not one of"),
        (["key", "Not A Slug"], "NAME: Not A Slug"),
        (["promote", "helper", "second"], "VERSION: second: no number"),
        (["trial", "start", "helper", "2", "--as", "champion"], "--as: champion: opens no trial"),
        (["trial", "report", "a/../b"], "TRIAL: a/../b: no such name: use a-z, 0-9 and -"),
        (["trial", "stop", "helper"], "Missing option '--reason'"),
    ],
)
def test_a_wrong_command_line_is_one_line(run: Run, arguments: list[str], expected: str) -> None:
    code, _, said = run(*arguments)
    assert code == 2
    assert len(said) == 1
    assert said[0].lower().startswith(expected.lower())


def test_a_bug_is_one_line_that_names_the_file_with_its_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEATRIAL_HOME")
    (tmp_path / ".seatrial" / "logs").mkdir(parents=True)
    monkeypatch.setattr("seatrial.cli.where.HOME_NAME", None)
    code, _, said = run("up")
    assert (code, len(said)) == (70, 1)
    assert said[0].startswith("unexpected TypeError: ")
    kept = Path(said[0].rsplit("traceback: ", 1)[1])
    assert kept.parent == Path(".seatrial") / "logs"
    assert "Traceback (most recent call last)" in kept.read_text()


def test_a_bug_repeats_no_secret(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "logs").mkdir(parents=True)

    def fails() -> None:
        raise KeyError("postgresql://joe:hunter2@db/x")

    monkeypatch.setattr("seatrial.cli.jobs.addresses", fails)
    code, _, said = run("jobs", "submit", "--", "x", "--password", "hunter2")
    assert code == 70
    kept = Path(said[0].rsplit("traceback: ", 1)[1]).read_text()
    assert "fails" in kept
    assert "hunter2" not in said[0] + kept


def test_the_installed_command_ends_with_the_same_code(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "seatrial"
    done = subprocess.run([program, "validate", "x.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("x.yaml: cannot be read")
    assert "Traceback" not in done.stderr
