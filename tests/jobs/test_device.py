"""What `device: auto` comes to: what the queue said, or else what the cluster has."""

from __future__ import annotations

import pytest
import ray

from seatrial.config.recipe import DEVICE, TrainRecipe
from seatrial_jobs.workers import trainer


def recipe(device: str) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "x",
            "service": "x",
            "model": {"base": "b"},
            "data": {"train": "d.jsonl"},
            "method": {"type": "lora"},
            "run": {"steps": 1},
            "resources": {"device": device, "workers": 2},
        }
    )


@pytest.mark.parametrize(
    ("device", "told", "present", "expected"),
    [
        ("auto", None, 2.0, True),
        ("auto", None, 1.0, False),
        ("auto", "", 2.0, True),
        ("auto", "gpu", 0.0, True),  # the autoscaler brings them
        ("auto", "cpu", 8.0, False),
        ("gpu", "cpu", 0.0, True),
        ("cpu", "gpu", 8.0, False),
    ],
)
def test_auto_is_what_the_queue_counts(
    monkeypatch: pytest.MonkeyPatch, device: str, told: str | None, present: float, expected: bool
) -> None:
    monkeypatch.delenv(DEVICE, raising=False)
    if told is not None:
        monkeypatch.setenv(DEVICE, told)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": present})
    assert trainer._on_gpu(recipe(device)) is expected
