"""What bad input gets: one line with the field, the value and the fix, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_processes import Start, lora_recipe

from seatrial.config.recipe import TrainRecipe
from seatrial_jobs import job, plan
from seatrial_jobs.prepare import prepare


@pytest.fixture
def attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a job's driver in this process; its exit code and what it wrote on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(job, "on_termination", lambda: None)  # the test runner keeps its own handlers

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
    "data elsewhere": (
        {"data": {"train": "s3://bucket/rows.jsonl"}},
        "data.train: s3://bucket/rows.jsonl: addresses are not read: give the path",
    ),
    "data of no name": ({"data": {"train": "a\0b.jsonl"}}, "data.train: "),
    "empty data": ({"data": {"train": "empty.jsonl"}}, "empty.jsonl: holds no usable row"),
    "no such directory": ({"model": {"base": "./none"}}, "model.base: ./none: no such directory"),
    "no such hub model": ({"model": {"base": "nobody/nothing"}}, "model.base: nobody/nothing: neither"),
    "directory without a model": ({"model": {"base": "."}}, "model.base: .: has no config.json"),
    "pickled weights": (
        {"model": {"base": "./pickled"}},
        "model.base: ./pickled: has no .safetensors weights",
    ),
    "remote code": ({"model": {"base": "./coded"}}, "config.json: auto_map: asks for remote code"),
    "damaged base": ({"model": {"base": "./damaged"}}, "./damaged: config.json: no valid JSON"),
    "impossible base": ({"model": {"base": "./impossible"}}, "./impossible: its config.json cannot be read"),
    "unknown architecture": ({"model": {"base": "./unknown"}}, "./unknown: its config.json cannot be read"),
    "GPT-2's name of the positions": (
        {"model": {"base": "./gpt2"}, "run": {"steps": 5, "seq_tokens": 80}},
        "run.seq_tokens: 80: longer than the model's 72 positions",
    ),
    "rows that the chat template refuses": (
        {"model": {"base": "./strict"}, "data": {"train": "system.jsonl", "max_bad_rows": 1}},
        "data: 2 bad rows, 1 allowed",
    ),
    "rows too long": ({"run": {"steps": 5, "seq_tokens": 512}}, "run.seq_tokens: 512: longer than"),
    "bad storage": (
        {"run": {"steps": 5, "seq_tokens": 64, "storage": "ftp://x/y"}},
        "run.storage: ftp://x/y: cannot be opened",
    ),
    "keys in the address": (
        {"run": {"steps": 5, "seq_tokens": 64, "storage": "s3://key:secret@bucket/x?region=us-east-1"}},
        "recipe.run.storage: looks like a password in a URL",
    ),
}


@pytest.fixture
def bases(tiny_base: Path, tmp_path: Path) -> None:
    """Bases with something wrong, each a copy of a good one."""
    config = json.loads((tiny_base / "config.json").read_text())
    gpt2 = {
        "model_type": "gpt2",
        "n_positions": 72,
        "vocab_size": 400,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
    }
    unknown = {"model_type": "no-such-family"}
    texts = {
        "pickled": json.dumps(config),
        "coded": json.dumps({**config, "auto_map": {"AutoModel": "theirs.Model"}}),
        "damaged": json.dumps(config)[:-10],
        "impossible": json.dumps({**config, "max_position_embeddings": "many"}),
        "unknown": json.dumps(unknown),
        "gpt2": json.dumps(gpt2),
        "strict": json.dumps(config),
    }
    for name, text in texts.items():
        shutil.copytree(tiny_base, tmp_path / name)
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    tokenizer = tmp_path / "strict" / "tokenizer_config.json"
    template = "{{ raise_exception('no system role') if messages[0].role == 'system' else 'ok' }}"
    values = {**json.loads(tokenizer.read_text()), "chat_template": template}
    tokenizer.write_text(json.dumps(values))
    talk = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    rows = [{"messages": talk}, {"messages": talk[1:]}, {"messages": talk}]
    (tmp_path / "system.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_2(name: str, attempt: Any, values: dict[str, Any], tmp_path: Path):
    change, expected = CASES[name]
    (tmp_path / "empty.jsonl").write_text("\n")
    code, error = attempt({**values, **change})
    assert expected in error
    assert code == 2
    assert [line for line in error.strip().splitlines() if not line.startswith("  ")] == [
        error.splitlines()[0]
    ]
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists(), "nothing is kept of a job that did not start"


@pytest.mark.parametrize("change", [{}, {"model": {"base": "models:/x/1"}}])
def test_mlflow_that_is_away_is_one_line_of_what_may_be_tried_again(
    attempt: Any, values: dict[str, Any], change: dict[str, Any]
):
    code, error = attempt({**values, **change})
    assert code == 75, "the queue tries such a job again"
    assert error.startswith("MLFLOW_TRACKING_URI: http://127.0.0.1:9: does not answer")
    assert len(error.strip().splitlines()) == 1


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


@pytest.mark.slow
def test_what_only_a_worker_can_find_out_ends_the_job_at_once(
    start_job: Start, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = lora_recipe(tiny_base, data, tmp_path)
    job = start_job({**recipe, "method": {"type": "lora", "targets": ["no_such_layer"]}})
    assert job.wait() == 2, "\n".join(job.lines())
    complaints = [line for line in job.lines() if "method.targets" in line and "::" not in line]
    assert len(complaints) == 1
    assert "Traceback" not in "\n".join(job.lines())


@pytest.mark.usefixtures("bases")
def test_a_row_that_the_chat_template_refuses_is_named_and_left_out_where_that_is_allowed(
    attempt: Any, values: dict[str, Any], tmp_path: Path
):
    data = {"train": "system.jsonl", "heldout_share": 0}
    _, error = attempt({**values, "model": {"base": "./strict"}, "data": data})
    assert "system.jsonl:1: is refused by the model's chat template (no system role)" in error
    assert "system.jsonl:3: " in error
    recipe = {**values, "model": {"base": str(tmp_path / "strict")}, "data": {**data, "max_bad_rows": 2}}
    prepared = prepare(TrainRecipe.model_validate(recipe), tmp_path)
    assert [row.line for row in prepared.split.bad] == [1, 3]
    assert (prepared.split.rows_read, prepared.split.rows_kept) == (3, 1)


def test_what_does_not_fit_is_counted(values: dict[str, Any], tmp_path: Path):
    long = "word " * 300
    rows = [
        {"prompt": "a", "response": "b"},
        {"prompt": long, "response": "b"},
        {"prompt": "a", "response": long},
        {"text": long},
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {**values, "data": {"train": "long.jsonl", "heldout_share": 0}}
    recipe = TrainRecipe.model_validate(values)
    found = plan.plan(recipe, tmp_path)
    assert (found.cut_documents, found.cut_responses) == (2, 1)
    assert found.cut_tokens > 400
    assert prepare(recipe, tmp_path).tokens_digest == prepare(recipe, tmp_path).tokens_digest


def test_the_digest_of_the_tokens_sees_the_chat_template(
    values: dict[str, Any], tiny_base: Path, tmp_path: Path
):
    def digest() -> str:
        return prepare(TrainRecipe.model_validate(values), tmp_path).tokens_digest

    plain = digest()
    base = shutil.copytree(tiny_base, tmp_path / "other")
    values["model"] = {"base": str(base)}
    assert digest() == plain
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    assert digest() != plain


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
