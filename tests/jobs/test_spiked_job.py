"""A job of two workers on a file with two lines that make no sense: MLflow tells which lines they are."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import pytest
import torch
from job_processes import Start, lora_recipe

from seatrial.config.recipe import TrainRecipe
from seatrial.registry import runs
from seatrial.registry.client import connect
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.prepare import prepare

pytestmark = pytest.mark.slow
PLANTED = (120, 121)


@pytest.fixture
def spiked_data(data: Path, tmp_path: Path) -> Path:
    chance = random.Random(1)  # noqa: S311
    lines = (data / "pairs.jsonl").read_text().splitlines()
    for line in PLANTED:
        noise = "".join(chance.choice(string.ascii_lowercase + " ,.;!?") for _ in range(400))
        lines.insert(line - 1, json.dumps({"prompt": "Join nothing", "response": noise}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_event_is_in_mlflow_with_the_lines_of_its_batch(
    start_job: Start, tiny_base: Path, spiked_data: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    spikes = {"action": "skip", "window": 8, "threshold": 4, "max_events": 40}
    run = {"batch_rows": 4, "accumulate": 1, "learning_rate": 0.003, "warmup_share": 0, "spikes": spikes}
    recipe = lora_recipe(tiny_base, spiked_data, tmp_path / "kept", **run) | {"method": {"type": "full"}}
    job = start_job(recipe)
    assert job.wait() == 0, "\n".join(job.lines())

    run_id = job.events("run")[0]["run_id"]
    client = connect(mlflow_uri)
    kept = Path(client.download_artifacts(run_id, "spikes.json", str(tmp_path)))
    events = json.loads(kept.read_text())
    assert runs.tags_of(run_id, uri=mlflow_uri)["seatrial.spikes"] == str(len(events["step"]))
    packed = prepare(TrainRecipe.model_validate(recipe), tmp_path).train
    batches = Batches(packed, 4, 1, 0, Share(0, 1, torch.device("cpu")))
    norms = dict(runs.history(run_id, "train/grad_norm", uri=mlflow_uri))
    for step, rows, norm in zip(events["step"], events["rows"], events["grad_norm"], strict=True):
        assert rows == batches.lines(step - 1)
        assert norm == pytest.approx(norms[step])
        assert set(rows) & set(PLANTED), "no other batch stands out"
    assert {line for rows in events["rows"] for line in rows} >= set(PLANTED)
