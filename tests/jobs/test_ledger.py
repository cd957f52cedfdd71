"""A job's identity, and who may write for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seatrial.config.recipe import TrainRecipe
from seatrial_jobs import ledger
from seatrial_jobs.storage import Storage


def recipe(**run: Any) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "a-job",
            "service": "a-service",
            "data": {"train": "x.jsonl"},
            "model": {"base": "b"},
            "method": {"type": "lora"},
            "run": {"steps": 10, **run},
        }
    )


def test_identity_is_what_shapes_the_weights():
    known = ledger.job_id(recipe(), "data", "base")
    assert known.startswith("a-job-")
    assert (
        ledger.job_id(recipe(storage="s3://b/p", keep_checkpoints=5, accumulate=4), "data", "base") == known
    )
    assert ledger.job_id(recipe(learning_rate=0.5), "data", "base") != known
    assert ledger.job_id(recipe(), "other", "base") != known
    assert ledger.job_id(recipe(), "data", "other") != known


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.of("jobs", tmp_path).below("a-job")


def test_the_last_driver_owns_the_job_and_continues_its_attempt(storage: Storage):
    first = ledger.take_over(storage, force=False)
    second = ledger.take_over(storage, force=True)
    assert second.attempt == first.attempt, "--force leaves an unfinished job as it is"
    ledger.require_owner(storage, second.driver)
    with pytest.raises(ledger.SupersededError, match="another driver"):
        ledger.require_owner(storage, first.driver)


def test_a_finished_job_starts_from_nothing_only_when_forced(storage: Storage):
    first = ledger.take_over(storage, force=False)
    finished = ledger.Record(first.attempt, first.driver, "run", "3")
    ledger.save(storage, finished)
    storage.write("checkpoint-1/x", b"")
    assert ledger.take_over(storage, force=False) == finished
    again = ledger.take_over(storage, force=True)
    assert (again.version, again.run_id) == (None, None)
    assert again.attempt != first.attempt
    assert storage.folders() == []
