"""SIGKILL of every kind in one job: it goes on from sound checkpoints, and ends as an uninterrupted one."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import kills
from tests.jobs.job_processes import lora_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
POINTS, STEPS, EVERY = len(kills.KINDS), 40, 5  # one kill of each kind; `benchmarks/resume.py` makes 50


def test_a_job_that_is_killed_again_and_again_ends_as_an_uninterrupted_one(
    uninterrupted: Any, cluster: Any, tiny_base: Path, data: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    recipe = lora_recipe(
        tiny_base, data, tmp_path / "kept", steps=STEPS, checkpoint_every=EVERY, max_failures=4 * POINTS
    )
    (points,) = kills.plan(POINTS, 0, steps=STEPS, every=EVERY, a_job=POINTS)
    chance = random.Random(0)  # noqa: S311
    with closing(kills.Victim(cluster, recipe, tmp_path / "kept", tmp_path, chance)) as victim:
        shots = [shot for point in points for shot in victim.kill(point)]
        mine = victim.finish(mlflow_uri)

    largest, wrong = kills.difference(mine, kills.trace_of(uninterrupted.registered, mlflow_uri))
    assert [*mine.wrong, *wrong, *(line for shot in shots for line in shot.wrong)] == []
    assert {shot.kind for shot in shots} == set(kills.KINDS)
    assert largest == 0.0, "on CPUs, with as many workers, bit for bit"
