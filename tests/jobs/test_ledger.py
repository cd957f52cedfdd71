"""A job's identity, and who may write for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seatrial.config.recipe import TrainRecipe
from seatrial.errors import UserError
from seatrial.registry import runs
from seatrial_jobs import ledger
from seatrial_jobs.storage import Storage, may_pass


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
    digests = ("data", "base", "tokens")
    known = ledger.job_id(recipe(), *digests)
    assert known.startswith("a-job-")
    assert ledger.job_id(recipe(storage="s3://b/p", keep_checkpoints=5, accumulate=4), *digests) == known
    assert ledger.job_id(recipe(learning_rate=0.5), *digests) != known
    for position in range(3):
        other = [*digests[:position], "other", *digests[position + 1 :]]
        assert ledger.job_id(recipe(), *other) != known


def test_every_field_is_either_of_the_identity_or_operational():
    both = runs.flatten(ledger.identity(recipe())), runs.flatten(ledger.operational(recipe()))
    assert not both[0].keys() & both[1].keys()
    assert both[0] | both[1] == runs.flatten(recipe().model_dump(mode="json"))
    assert both[0]["run.learning_rate"] == "0.001"
    assert both[1]["run.storage"] == "runs/jobs"
    assert "gate.max_loss" not in both[1], "a bound that is not given is no setting"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.of("jobs", tmp_path).below("a-job")


def test_the_last_driver_owns_the_job_and_continues_its_attempt(storage: Storage):
    first = ledger.take_over(storage, force=False)
    second = ledger.take_over(storage, force=False)
    assert second.attempt == first.attempt
    ledger.require_owner(storage, second.driver)
    with pytest.raises(ledger.SupersededError, match="another driver"):
        ledger.require_owner(storage, first.driver)


def test_force_starts_an_unfinished_job_from_nothing_as_a_new_attempt(storage: Storage):
    first = ledger.take_over(storage, force=False)
    ledger.save(storage, replace(first, run_id="run"))
    storage.write("checkpoint-1/x", b"")
    second = ledger.take_over(storage, force=True)
    assert second.attempt != first.attempt
    assert second.run_id is None
    assert storage.folders() == []
    with pytest.raises(ledger.SupersededError):
        ledger.require_owner(storage, first.driver)


def test_a_record_that_is_not_there_is_a_place_that_is_away(storage: Storage):
    record = ledger.take_over(storage, force=False)
    storage.clear()
    with pytest.raises(FileNotFoundError, match="no record of the job") as caught:
        ledger.require_owner(storage, record.driver)
    assert may_pass(caught.value)


def test_code_takes_part_once_it_goes_on_from_what_other_code_has_kept(storage: Storage):
    def digests(code: str, *, force: bool = False) -> list[str]:
        return ledger.take_over(storage, force=force, code_digest=code).code_digests

    assert digests("a") == ["a"]
    assert digests("b") == ["b"], "nothing is kept of the time before"
    storage.write("checkpoint-1/x", b"")
    assert digests("b") == ["b"]
    assert digests("c") == ["b", "c"]
    assert digests("b") == ["b", "c", "b"]
    assert ledger.take_over(storage, force=False).code_digests == ["b", "c", "b"]
    assert digests("c", force=True) == ["c"]


def test_the_code_of_a_record_that_does_not_tell_it_is_unknown(storage: Storage):
    storage.write(ledger.RECORD, b'{"attempt": "a", "driver": "d", "run_id": "r", "version": null}')
    storage.write("checkpoint-1/x", b"")
    found = ledger.read(storage)
    assert found is not None
    assert found.of_other_code("a") == [ledger.UNKNOWN]
    assert ledger.take_over(storage, force=False, code_digest="a").code_digests == [ledger.UNKNOWN, "a"]


def test_what_newer_code_keeps_besides_is_passed_over(storage: Storage):
    mine = ledger.take_over(storage, force=False)
    storage.write_json(ledger.RECORD, {**vars(mine), "of_tomorrow": [1]})
    assert ledger.read(storage) == mine


@pytest.mark.parametrize("content", [b"{half", b"[]", b'{"attempt": "a"}', b"\xff"])
def test_a_damaged_record_is_one_line_and_force_mends_it(storage: Storage, content: bytes):
    storage.write(ledger.RECORD, content)
    with pytest.raises(UserError, match=rf"run\.storage: .*{ledger.RECORD}: damaged .*--force") as caught:
        ledger.take_over(storage, force=False)
    assert "\n" not in str(caught.value)
    assert ledger.take_over(storage, force=True).run_id is None


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
