"""Workers that share one model: as many as there are, and with copies or parts, they train the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from gangs import CPU, together
from job_processes import Cluster, Start, lora_recipe, until
from safetensors.torch import load_file
from sharded_training import (
    STEPS,
    VARIANTS,
    Training,
    answers,
    exported,
    fetches,
    half_precision,
    held,
    killed_between_parts,
    refused,
    resumed,
    saved,
    sick,
    spiked,
    staged,
    traces,
)

from seatrial.registry import runs, versions
from seatrial_jobs import ledger
from seatrial_jobs.batches import Share
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.evaluate import Question
from seatrial_jobs.storage import Storage

ALONE = Share(0, 1, CPU)
GROUPS = {
    (2, "none"): ["plain", "lora", "accumulated"],
    (2, "full"): list(VARIANTS),
    (3, "none"): ["plain"],
    (3, "full"): ["plain", "lora", "accumulated", "recomputed", "apart"],
}


@pytest.fixture(scope="module")
def alone(tiny_base: Path) -> dict[str, tuple[list[float], ...]]:
    """What one worker measures: neither passes nor layers nor compilation should change it."""
    return traces(ALONE, tiny_base, "none", ["plain", "lora"])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    found = Storage(str(tmp_path / "job"))
    ledger.take_over(found, force=False)
    return found


@pytest.mark.parametrize(("size", "how"), list(GROUPS))
def test_neither_the_number_of_workers_nor_sharding_changes_losses_norms_and_measurements(
    alone: dict[str, Any], tiny_base: Path, size: int, how: str
):
    for found in together(size, traces, tiny_base, how, GROUPS[size, how]):
        for variant, measured in found.items():
            for mine, expected in zip(measured, alone["lora" if "lora" in variant else "plain"], strict=True):
                assert mine == pytest.approx(expected, abs=2e-5), variant
    assert alone["plain"][0][-1] < alone["plain"][0][0]


def test_a_sharded_model_may_compute_in_bfloat16(tiny_base: Path):
    expected = half_precision(ALONE, tiny_base, "none")
    for found in together(2, half_precision, tiny_base, "full"):
        for kind, losses in found.items():
            assert losses == pytest.approx(expected[kind], rel=1e-2), kind


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_worker_keeps_a_part_of_the_weights_and_of_the_optimizer(tiny_base: Path, method: str):
    weights, moments = held(ALONE, tiny_base, "none", method)
    assert moments == 2 * weights
    parts = together(2, held, tiny_base, "full", method)
    assert [sum(numbers) for numbers in zip(*parts, strict=True)] == [weights, moments]
    assert max(part[0] for part in parts) < 0.6 * weights


def test_a_snapshot_of_parts_does_not_change_with_the_weights(tiny_base: Path):
    assert together(2, staged, tiny_base) == [True, True]


@pytest.mark.parametrize(
    ("before", "after", "method"),
    [
        ("2 full", "3 full", "full"),
        ("2 full", "3 full", "lora"),
        ("2 full", "1 none", "full"),
        ("1 none", "2 full", "full"),
        ("3 full", "2 none", "lora"),
    ],
)
def test_a_checkpoint_is_loaded_under_another_number_of_workers(
    alone: dict[str, Any], tiny_base: Path, storage: Storage, before: str, after: str, method: str
):
    expected = alone["plain" if method == "full" else method][0]
    place = Path(storage.uri)
    for found in on(before, saved, tiny_base, place, method, 3):
        assert found == pytest.approx(expected[:3], abs=2e-5)
    parts = list(place.glob("checkpoint-00000003-*/rank-*"))
    assert len(parts) == (int(before[0]) if "full" in before else 0)
    if method == "lora":
        assert all("lora_" in name for part in parts for name in load_file(part)), (
            "what is frozen is not kept"
        )
    for found in on(after, resumed, tiny_base, place, method):
        assert found == pytest.approx(expected[3:], abs=2e-5)


def test_workers_of_one_machine_fetch_a_checkpoint_once(tiny_base: Path, storage: Storage):
    place = Path(storage.uri)
    together(2, saved, tiny_base, place, "full", "full", 3)
    assert together(3, fetches, tiny_base, place) == [3, 0, 0], "two parts and what is no tensor"


def on(group: str, act: Any, base: Path, place: Path, *arguments: Any) -> list[Any]:
    """Act on as many workers as ``group`` says, sharded as it says."""
    size, how = group.split()
    if size == "1":
        return [act(ALONE, base, place, how, *arguments)]
    return together(int(size), act, base, place, how, *arguments)


def test_a_weight_without_a_number_on_one_worker_ends_the_job_on_all(tiny_base: Path, storage: Storage):
    for said in together(3, sick, tiny_base, Path(storage.uri)):
        assert said == ("after step 1 the weights model.norm.weight are not finite: lower run.learning_rate")
    assert checkpoint.complete(storage) == []


def test_a_part_that_is_missing_or_damaged_leaves_the_checkpoint_before_it(
    alone: dict[str, Any], tiny_base: Path, storage: Storage, tmp_path: Path
):
    place, expected = Path(storage.uri), alone["plain"][0]
    with pytest.raises(RuntimeError):  # the process, or the other's connection to it, is gone
        together(2, killed_between_parts, tiny_base, place, 3)
    assert list(place.glob("checkpoint-00000003-*/half.partial"))
    assert [checkpoint.step_of(kept.name) for kept in checkpoint.complete(storage)] == [1, 2]
    for found in together(3, resumed, tiny_base, place, "full", "full"):
        assert found == pytest.approx(expected[2:], abs=2e-5)

    (last,) = place.glob(f"checkpoint-{STEPS:08d}-*")
    part = last / "rank-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    folder, passed_over = checkpoint.newest(storage, tmp_path)
    assert folder is not None
    assert checkpoint.step_of(folder.name) == 2
    assert "rank-00001.safetensors has sha256" in passed_over[last.name]


def test_all_workers_judge_a_spike_alike(tiny_base: Path, storage: Storage, tmp_path: Path):
    other = Storage(str(tmp_path / "other"))
    ledger.take_over(other, force=False)
    losses, events = spiked(ALONE, tiny_base, Path(other.uri), "none")
    assert [(event["step"], event["back_to"]) for event in events] == [(11, 10)]
    for found, its_events in together(2, spiked, tiny_base, Path(storage.uri), "full"):
        assert found == pytest.approx(losses, abs=1e-4)
        assert [(event["step"], event["back_to"]) for event in its_events] == [(11, 10)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_version_of_a_sharded_model_has_its_whole_weights(tiny_base: Path, tmp_path: Path, method: str):
    for place in ("one", "two"):
        ledger.take_over(Storage(str(tmp_path / place / "job")), force=False)
    exported(ALONE, tiny_base, tmp_path / "one", "none", method)
    together(2, exported, tiny_base, tmp_path / "two", "full", method)
    one, two = (
        {path.name: path for path in (tmp_path / name / "version").iterdir()} for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    (weights,) = (name for name in one if name.endswith(".safetensors"))
    expected, found = load_file(one[weights]), load_file(two[weights])
    assert expected.keys() == found.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    for name in one.keys() - {weights}:
        assert one[name].read_text() == two[name].read_text(), name

    kept = Training(ALONE, tiny_base, "none", tmp_path / "two" / "job", method=method)
    kept.go()  # there is no step left
    assert kept.steps == []
    whole = dict(kept.plain.named_parameters())
    trained = {name for name, parameter in whole.items() if parameter.requires_grad}
    assert len(trained) == len(found)
    for name in trained:
        stored = name.replace(".default", "")
        assert torch.equal(found[stored], whole[name].detach()), name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_sharded_workers_answer_as_one_does_however_many_questions_there_are(tiny_base: Path, method: str):
    chance = torch.Generator().manual_seed(0)
    ids = [torch.randint(6, 400, (3 + 2 * n,), generator=chance).tolist() for n in range(3)]
    questions = [Question("", each, "") for each in ids]
    expected = answers(ALONE, tiny_base, "none", method, questions)
    first, second = together(2, answers, tiny_base, "full", method, questions)
    assert [first[0], second[0], first[1]] == expected
    assert len(set(expected)) > 1


def test_weights_that_cannot_be_divided_are_named(tiny_base: Path):
    for said in together(2, refused, tiny_base):
        assert said == ("resources.sharding: full: own lies outside of the model that is divided: give none")


@pytest.mark.slow
@pytest.mark.soak
def test_a_sharded_job_survives_a_killed_worker_and_ends_in_a_version(
    start_job: Start, cluster: Cluster, tiny_base: Path, data: Path, mlflow_uri: str, tmp_path: Path
):
    recipe = lora_recipe(tiny_base, data, tmp_path / "jobs")
    recipe |= {"name": "sharded", "service": "sharded", "method": {"type": "full"}}
    recipe["resources"] |= {"sharding": "full"}
    job = start_job(recipe)
    until(lambda: list(tmp_path.glob("jobs/*/checkpoint-00000008-*/marker.json")))
    os.kill(cluster.workers()[0].pid, signal.SIGKILL)
    assert job.wait() == 0, "\n".join(job.lines())
    assert job.events("resumed")[0]["step"] >= 8
    assert len(list(tmp_path.glob("jobs/*/checkpoint-00000040-*/rank-*.safetensors"))) == 2

    version = job.events("registered")[0]["version"]
    folder = versions.download("sharded", version, tmp_path / "cache", uri=mlflow_uri)
    from transformers import AutoModelForCausalLM

    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    losses = runs.history(job.events("run")[0]["run_id"], "train/loss", uri=mlflow_uri)
    assert [step for step, _ in losses] == list(range(1, 41))
    assert losses[-1][1] < losses[0][1] / 2
