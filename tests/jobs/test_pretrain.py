"""From text to a registered base, and what its MLflow run holds."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from job_processes import Start

from seatrial.config.recipe import PretrainRecipe
from seatrial.registry import aliases, runs, versions
from seatrial.registry.client import connect
from seatrial_jobs.batches import Share
from seatrial_jobs.evaluate import heldout_loss
from seatrial_jobs.prepare import prepare

pytestmark = pytest.mark.slow


def recipe(data: Path, storage: Path) -> dict[str, Any]:
    return {
        "name": "word-base",
        "register_as": "word-base",
        "data": {"train": str(data / "text.jsonl")},
        "tokenizer": {"vocab_size": 400},
        "architecture": {
            "hidden_size": 64,
            "layers": 2,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 32,
            "feed_forward": 128,
            "max_positions": 256,
        },
        "run": {
            "steps": 20,
            "seq_tokens": 128,
            "batch_rows": 8,
            "learning_rate": 0.01,
            "storage": str(storage),
        },
        "resources": {"workers": 2, "sharding": "full", "threads_per_worker": 1},
    }


def test_workers_that_share_a_model_register_a_base_that_loads_and_is_its_champion(
    start_job: Start, data: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    values = recipe(data, tmp_path / "jobs")
    job = start_job(values, module="pretrain")
    assert job.wait() == 0, "\n".join(job.lines())
    events = [line for line in job.lines() if line.startswith("::seatrial:: ")]
    assert '"event":"run"' in events[0], "the run's address comes first"
    assert '"event":"done"' in events[-1]

    assert aliases.read("word-base", uri=mlflow_uri) == {"champion": "1"}
    folder = versions.download("word-base", "1", tmp_path / "cache", uri=mlflow_uri)
    manifest = versions.verify(folder)
    assert (manifest.kind, manifest.method, manifest.base) == ("full", "pretrain", None)
    assert manifest.run_id == job.events("run")[0]["run_id"]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.architectures == ["LlamaForCausalLM"]
    heldout = prepare(PretrainRecipe.model_validate(values), Path.cwd()).heldout
    assert heldout is not None
    loss = heldout_loss(model, heldout, 8, Share(0, 1, torch.device("cpu")), nullcontext)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template

    run_id = job.events("run")[0]["run_id"]
    losses = runs.history(run_id, "train/loss", uri=mlflow_uri)
    assert [step for step, _ in losses] == list(range(1, 21))
    assert losses[-1][1] < losses[0][1]
    assert runs.history(run_id, "eval/loss", uri=mlflow_uri) == [(20, pytest.approx(loss, abs=1e-5))]
    run = connect(mlflow_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["run.learning_rate"] == "0.01"
    assert run.data.tags["seatrial.version"] == "word-base/1"
    assert len(run.data.tags["seatrial.data_digest"]) == 64
    assert {"loss.png", "model"} <= {file.path for file in connect(mlflow_uri).list_artifacts(run_id)}
    assert set(run.data.metrics) >= {"train/tokens_per_s", "train/grad_norm", "eval/loss"}
    names = sorted(path.name for path in (tmp_path / "jobs").glob("*/checkpoint-*"))
    assert len(names) == 1
