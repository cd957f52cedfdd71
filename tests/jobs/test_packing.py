"""A job on a model that would mix packed documents gives them rows of their own, on any number of workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from job_processes import Start, lora_recipe

from seatrial.registry import runs

pytestmark = [pytest.mark.slow, pytest.mark.soak]


@pytest.fixture
def opt_base(tiny_base: Path, tmp_path: Path) -> Path:
    """An OPT, which reads no positions, with the tiny base's tokenizer."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    place = tmp_path / "opt"
    place.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, place)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=400,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=64,
        max_position_embeddings=256,
        dropout=0.0,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    OPTForCausalLM(config).save_pretrained(place)
    return place


def test_workers_that_take_documents_apart_arrive_at_the_same_losses(
    start_job: Start, opt_base: Path, data: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    found = []
    for workers in (1, 2):
        recipe = lora_recipe(opt_base, data, tmp_path / str(workers), steps=4, batch_rows=4)
        resources = {**recipe["resources"], "workers": workers}
        job = start_job({**recipe, "method": {"type": "lora", "rank": 4}, "resources": resources})
        assert job.wait() == 0, "\n".join(job.lines())
        run_id = job.events("run")[0]["run_id"]
        assert runs.tags_of(run_id, uri=mlflow_uri)["seatrial.packing"].startswith("off")
        found.append([loss for _, loss in runs.history(run_id, "train/loss", uri=mlflow_uri)])
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], abs=1e-5)
