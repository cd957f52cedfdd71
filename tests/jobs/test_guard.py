"""Between gradient and update: what each action does to the weights, and that a resumed guard goes on."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from seatrial.config.run import SpikesSection
from seatrial_jobs.spec import HopelessError
from seatrial_jobs.workers.guard import Guard

ORDINARY = (torch.tensor(2.0), torch.tensor(1.0))
WILD = (torch.tensor(50.0), torch.tensor(1.0))


class Bench:
    """A guard that has seen 20 ordinary steps."""

    def __init__(self, back_to: tuple[int, Any] | None = None, **settings: Any) -> None:
        self.told: list[dict[str, Any]] = []
        self.guard = Guard(
            SpikesSection.model_validate({"window": 16, **settings}),
            lambda step: [step, step + 100],
            lambda: back_to,
            lambda events: self.told.append(dict(events[-1])),
            workers=1,
        )
        assert all(self.guard.allows(step, *ORDINARY) for step in range(20))


def test_a_skipped_step_is_told_with_its_rows_and_gradient_norm():
    bench = Bench()
    assert not bench.guard.allows(20, *WILD)
    assert bench.guard.allows(21, *ORDINARY)
    (event,) = bench.told
    assert (event["step"], event["what"], event["rows"]) == (21, "loss", [20, 120])
    assert (event["loss"], event["grad_norm"], event["median"]) == (50.0, 1.0, 2.0)
    assert bench.guard.factor == 1.0


def test_lowering_the_rate_lasts_and_adds_up():
    bench = Bench(action="lower_lr", lr_factor=0.5)
    for step in (20, 21):
        assert not bench.guard.allows(step, *WILD)
    assert bench.guard.factor == 0.25


def test_rolling_back_takes_the_checkpoints_memory_and_says_where_to():
    earlier = {"losses": [30.0] * 16, "norms": [1.0] * 16}
    bench = Bench(back_to=(10, {"detector": earlier}), action="rollback")
    assert not bench.guard.allows(20, *WILD)
    assert bench.told[0]["back_to"] == 10
    assert bench.guard.memory()["detector"] == earlier


def test_without_a_checkpoint_rolling_back_is_skipping():
    bench = Bench(action="rollback")
    assert not bench.guard.allows(20, *WILD)
    assert bench.told[0]["back_to"] is None


@pytest.mark.parametrize(("settings", "allowed"), [({"action": "stop"}, 0), ({"max_events": 3}, 2)])
def test_a_job_that_is_to_stop_says_which_rows_it_was(settings: dict[str, Any], allowed: int):
    bench = Bench(**settings)
    for step in range(20, 20 + allowed):
        assert not bench.guard.allows(step, *WILD)
    last = 20 + allowed
    with pytest.raises(
        HopelessError, match=rf"step {last + 1}: the loss is 50.* lines {last}, {last + 100} of data.train"
    ):
        bench.guard.allows(last, *WILD)
    assert len(bench.told) == allowed + 1


def test_what_is_kept_is_json_even_of_a_loss_that_is_no_number():
    bench = Bench(action="lower_lr")
    assert not bench.guard.allows(20, torch.tensor(math.nan), torch.tensor(math.inf))
    kept = json.loads(json.dumps(bench.guard.memory(), allow_nan=False))
    other = Bench(action="lower_lr")
    other.guard.remember(kept)
    assert other.guard.memory() == bench.guard.memory()
    assert other.guard.factor == 0.5
