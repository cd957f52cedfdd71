"""The verbs themselves: help, keys, schemas, and what progress looks like."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from seatrial.cli import main as cli
from seatrial.cli.progress import PlainFollower, figures
from seatrial.config.load import loads
from seatrial.config.service import HttpSection, ServiceConfig
from seatrial.submission.deploy import curl_line
from seatrial.submission.events import Event


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from seatrial.cli.main import main; main(['--help']); "
        "heavy = {'mlflow', 'ray', 'sqlalchemy', 'pydantic', 'rich', 'psutil', 'httpx'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_verbs_says_what_each_says_of_itself() -> None:
    for name, sentence in cli.VERBS.items():
        module = importlib.import_module(f"seatrial.cli.{name}")
        doc = module.app.info.help if hasattr(module, "app") else module.command.__doc__
        assert doc.split("\n")[0] == sentence, name


def test_every_option_and_argument_explains_itself() -> None:
    group = typer.main.get_command(cli.app)
    for name in cli.VERBS:
        for parameter in group.commands[name].params:  # type: ignore[attr-defined]
            assert parameter.help, f"{name}: {parameter.name}"


def test_every_verb_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.VERBS:
        assert cli.main([name, "--help"]) == 0
        assert f"Usage: seatrial {name}" in capsys.readouterr().out


def test_a_key_is_new_each_time_and_its_hash_fits_the_service_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = set()
    for _ in range(2):
        assert cli.main(["key", "web"]) == 0
        printed = capsys.readouterr().out
        key = re.search(r"^st-\S{40,}$", printed, re.MULTILINE)
        assert key is not None
        http = printed[printed.index("http:") :].replace("http:\n", "").replace("\n  ", "\n").strip()
        section = loads(http, HttpSection)
        assert section.keys[0].name == "web"
        assert section.keys[0].sha256 == hashlib.sha256(key.group().encode()).hexdigest()
        keys.add(key.group())
    assert len(keys) == 2


@pytest.mark.parametrize("kind", ["recipe", "pretrain", "service"])
def test_schemas_are_json(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", kind]) == 0
    assert "properties" in json.loads(capsys.readouterr().out)


def test_status_where_nothing_runs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "SEATRIAL_CONTROLLER_URL"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert cli.main(["status", "--home", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "mlflow\taway\thttp://127.0.0.1:9" in printed
    assert printed.splitlines()[-1].startswith("Nothing answers")


def test_a_followed_job_shows_its_run_first_and_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:5000/#/experiments/1/runs/2"
    with PlainFollower() as follower:
        follower.hear("2026-11-23 23:58:20 INFO job_manager.py:581 -- Runtime env is setting up.")
        follower.hear("Running entrypoint for job tiny: python m.py")
        follower.hear(Event("run", {"url": url}))
        follower.hear(f"run  {url}")
        follower.hear("step 1/2 loss 2.0")
        follower.hear(Event("progress", {"step": 1, "steps": 2, "loss": 2.0}))
        follower.hear(Event("registered", {"name": "helper", "version": "3"}))
        follower.hear("registered  models:/helper/3")
        follower.hear(Event("run", {"url": url}))
    assert capsys.readouterr().out.splitlines() == [
        f"run        {url}",
        "step 1/2 loss 2.0",
        "registered  models:/helper/3",
    ]


def test_figures_are_those_that_the_event_has() -> None:
    event = Event("progress", {"loss": 2.3456, "tokens_per_s": 8120.4, "eta_s": 185})
    assert figures(event) == "loss 2.346  8,120 tok/s  ETA 3 min 5 s"
    assert figures(Event("progress")) == ""


def test_the_printed_request_carries_a_key_where_one_is_needed() -> None:
    text = "name: helper\nengine: {base: x}\nhttp: "
    open_ = loads(text + "{allow_anonymous: true}", ServiceConfig)
    keyed = loads(text + f"{{keys: [{{name: web, sha256: '{'0' * 64}'}}]}}", ServiceConfig)
    assert "authorization" not in curl_line(open_, "http://127.0.0.1:8000")
    assert "Bearer $SEATRIAL_KEY" in curl_line(keyed, "http://127.0.0.1:8000")
