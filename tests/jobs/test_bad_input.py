"""What bad input gets: one line with the field, the value and the fix, exit code 2, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from seatrial.config.recipe import TrainRecipe
from seatrial_jobs import job, plan


@pytest.fixture
def attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a job's driver in this process; its exit code and what it wrote on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(job, "_on_termination", lambda: None)  # the test runner keeps its own handlers

    def run(values: dict[str, Any]) -> tuple[int, str]:
        Path("recipe.yaml").write_text(yaml.safe_dump(values))
        code = job.main(TrainRecipe, "seatrial_jobs.train", ["recipe.yaml"])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def values(data: Path, tiny_base: Path) -> dict[str, Any]:
    return {
        "name": "a-job",
        "service": "a-service",
        "data": {"train": str(data / "pairs.jsonl")},
        "model": {"base": str(tiny_base)},
        "method": {"type": "lora", "rank": 4},
        "run": {"steps": 5, "seq_tokens": 64},
    }


CASES = {
    "missing data": ({"data": {"train": "none.jsonl"}}, "none.jsonl: no such file"),
    "empty data": ({"data": {"train": "empty.jsonl"}}, "empty.jsonl: holds no usable row"),
    "no such directory": ({"model": {"base": "./none"}}, "model.base: ./none: no such directory"),
    "no such hub model": ({"model": {"base": "nobody/nothing"}}, "model.base: nobody/nothing: neither"),
    "directory without a model": ({"model": {"base": "."}}, "model.base: .: has no config.json"),
    "rows too long": ({"run": {"steps": 5, "seq_tokens": 512}}, "run.seq_tokens: 512: longer than"),
    "bad storage": (
        {"run": {"steps": 5, "seq_tokens": 64, "storage": "ftp://x/y"}},
        "run.storage: ftp://x/y: cannot be opened",
    ),
    "keys in the address": (
        {"run": {"steps": 5, "seq_tokens": 64, "storage": "s3://key:secret@bucket/x?region=us-east-1"}},
        "run.storage",
    ),
    "no MLflow": ({}, "MLFLOW_TRACKING_URI: http://127.0.0.1:9: does not answer"),
    "registered base without MLflow": ({"model": {"base": "models:/x/1"}}, "does not answer"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_2(name: str, attempt: Any, values: dict[str, Any], tmp_path: Path):
    change, expected = CASES[name]
    (tmp_path / "empty.jsonl").write_text("\n")
    code, error = attempt({**values, **change})
    assert expected in error
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists(), "nothing is kept of a job that did not start"


def test_all_errors_of_a_recipe_at_once(attempt: Any, values: dict[str, Any]):
    code, error = attempt({**values, "run": {"steps": 0, "seq_token": 64}, "nmae": "x"})
    assert code == 2
    assert "did you mean `seq_tokens`" in error
    assert len(error.strip().splitlines()) == 3


def test_bad_rows_are_named_with_file_line_and_reason(attempt: Any, values: dict[str, Any], tmp_path: Path):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a"}, {"text": ""}]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, error = attempt({**values, "data": {"train": "some.jsonl"}})
    assert code == 2
    assert "some.jsonl:2: `response` is missing" in error
    assert "some.jsonl:3: `text` is empty" in error


def test_the_plan_of_a_recipe(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**values, "run": {"epochs": 2, "seq_tokens": 64, "batch_rows": 4}}))
    assert plan.main([str(recipe)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows_read"] == found["rows_kept"] == 300
    assert 0 < found["heldout"] < 40
    assert found["batch_tokens"] == 256
    assert found["parameters"] == 99_648
    assert found["tokens"] * 2 / 256 <= found["steps"] < found["tokens"] * 2.5 / 256
    assert found["estimated_s"] > 0
    assert plan.main([str(tmp_path / "none.yaml")]) == 2
