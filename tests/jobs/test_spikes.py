"""What stands out is found, whatever it is; noise, trends and flat stretches are not."""

from __future__ import annotations

import json
import math
import random

import pytest

from seatrial.config.run import SpikesSection
from seatrial_jobs.workers.spikes import Detector


def falling(steps: int, *, seed: int = 0) -> list[tuple[float, float]]:
    """Losses from 6 to 2 with noise, and gradient norms with long tails."""
    chance = random.Random(seed)  # noqa: S311
    return [
        (2 + 4 * math.exp(-step / 60) + chance.gauss(0, 0.1), math.exp(chance.gauss(0, 0.3)))
        for step in range(steps)
    ]


def after(steps: int, **settings: object) -> Detector:
    detector = Detector(SpikesSection.model_validate(settings))
    for loss, norm in falling(steps):
        assert detector.judge(loss, norm) is None
    return detector


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_training_has_no_spikes(seed: int):
    detector = Detector(SpikesSection())
    assert [found for pair in falling(1000, seed=seed) if (found := detector.judge(*pair))] == []


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [
        (9.0, 1.0, "loss"),
        (2.0, 80.0, "gradient norm"),
        (math.nan, 1.0, "loss"),
        (math.inf, 1.0, "loss"),
        (2.0, math.nan, "gradient norm"),
    ],
)
def test_a_step_that_stands_out_is_named(loss: float, norm: float, what: str):
    found = after(200).judge(loss, norm)
    assert found is not None
    assert found.what == what
    assert found.score > 10


def test_a_spike_does_not_make_the_next_one_ordinary():
    detector = after(200)
    assert all(detector.judge(9.0, 1.0) is not None for _ in range(500))
    assert detector.judge(2.2, 1.0) is None


def test_before_there_is_enough_to_compare_with_only_what_is_no_number_stands_out():
    detector = after(10)
    assert detector.judge(50.0, 50.0) is None
    assert detector.judge(math.nan, 1.0) is not None


def test_a_flat_loss_makes_no_spikes_of_noise():
    detector = Detector(SpikesSection())
    for _ in range(100):
        detector.judge(1.0, 1.0)
    assert detector.judge(1.1, 1.0) is None
    assert detector.judge(1.5, 1.0) is not None


def test_a_detector_that_was_kept_decides_as_one_that_ran_through():
    whole, first = Detector(SpikesSection()), Detector(SpikesSection())
    pairs = falling(400)
    pairs[300] = (6.0, 1.0)
    for pair in pairs[:250]:
        first.judge(*pair)
    second = Detector(SpikesSection())
    second.remember(json.loads(json.dumps(first.memory())))
    for pair in pairs[:250]:
        whole.judge(*pair)
    assert [whole.judge(*pair) for pair in pairs[250:]] == [second.judge(*pair) for pair in pairs[250:]]
