"""The number of workers may change: the same rows in the same order, the same losses, no larger passes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from pydantic import ValidationError
from ray.train import ScalingConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from seatrial.config.recipe import TrainRecipe
from seatrial.config.run import ResourcesSection, RunSection
from seatrial.submission.ask import Wishes, of_recipe
from seatrial_jobs import ledger
from seatrial_jobs.batches import Batches, Share, cut, every
from seatrial_jobs.data.chat import IGNORED, Encoded
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.evaluate import heldout_loss
from seatrial_jobs.loop import Schedule, Step, autocast_for, optimizer_for, token_loss, train
from seatrial_jobs.memory import memory_of
from seatrial_jobs.shape import Shape
from seatrial_jobs.workers import elastic
from seatrial_jobs.workers.elastic import fitting
from tests.conftest import free_port

CPU = torch.device("cpu")
RUN = RunSection(steps=5, seq_tokens=32, batch_rows=4, accumulate=2, learning_rate=0.01)
FEWEST = 2
"""Passes of one row: with three workers, two of them have one row for two passes."""


def documents() -> Packed:
    chance = np.random.default_rng(0)
    texts = [chance.integers(1, 60, size=int(length)).tolist() for length in chance.integers(4, 20, size=40)]
    return pack([Encoded(text, [IGNORED, *text[1:]]) for text in texts], RUN.seq_tokens)


def tiny() -> nn.Module:
    torch.manual_seed(0)
    shape = Shape(32, 64, 2, 2, 1, 16, 64, tied=True)
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**shape.config()))
    return model


def losses(share: Share) -> list[float]:
    """The losses of a few steps, and the one of all rows afterwards."""
    packed, model = documents(), tiny()
    wrapped = nn.parallel.DistributedDataParallel(model) if share.size > 1 else model
    batches = Batches(packed, RUN.batch_rows, RUN.accumulate, RUN.seed, share, fewest=FEWEST)
    found: list[float] = []

    def keep(step: Step) -> None:
        found.append(float(step.loss))

    schedule = Schedule.of(RUN, 5)
    optimizer = optimizer_for(wrapped, RUN)
    train(wrapped, optimizer, batches, schedule, clip_norm=RUN.clip_norm, after_step=keep)
    return [*found, heldout_loss(wrapped, packed, 2, share, autocast_for(RUN, CPU))]


def as_worker(rank: int, ports: dict[int, int], place: str) -> None:
    torch.set_num_threads(1)
    for size, port in ports.items():
        if rank < size:
            address = f"tcp://127.0.0.1:{port}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
            found = losses(Share(rank, size, CPU))
            dist.destroy_process_group()
            (Path(place) / f"{size}-{rank}.txt").write_text(" ".join(map(repr, found)))


@pytest.mark.slow
def test_the_losses_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    ports = {workers: free_port() for workers in (3, 2)}
    processes.start_processes(as_worker, args=(ports, str(tmp_path)), nprocs=3, start_method="spawn")
    expected = losses(Share(0, 1, CPU))
    for workers, rank in [(3, 0), (3, 1), (3, 2), (2, 0), (2, 1)]:
        found = [float(text) for text in (tmp_path / f"{workers}-{rank}.txt").read_text().split()]
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("workers", range(1, 9))
@pytest.mark.parametrize(("rows", "at_once"), [(8, 4), (8, 1), (12, 5), (9, 2), (8, 8)])
def test_rows_are_cut_evenly_in_order_into_as_many_passes_for_all(
    workers: int, rows: int, at_once: int
) -> None:
    cuts = cut(np.arange(rows), workers, at_once)
    assert np.concatenate([part for mine in cuts for part in mine]).tolist() == list(range(rows))
    assert len({len(mine) for mine in cuts}) == 1
    assert max(len(part) for mine in cuts for part in mine) <= at_once
    held = [sum(map(len, mine)) for mine in cuts]
    assert max(held) - min(held) <= 1


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_no_pass_is_larger_than_with_the_fewest_workers_and_all_have_as_many(
    workers: int, apart: bool
) -> None:
    packed = documents()
    places = RUN.seq_tokens * RUN.batch_rows // (FEWEST * RUN.accumulate)
    for step in range(5):
        shares = [Share(rank, workers, CPU) for rank in range(workers)]
        made = [Batches(packed, 4, 2, 0, share, fewest=FEWEST, apart=apart) for share in shares]
        passes = [batches.at(step) for batches in made]
        assert len({len(mine) for mine in passes}) == 1
        targets = sum(int((batch.targets != IGNORED).sum()) for mine in passes for batch in mine)
        assert targets == made[0].loss_tokens(step)
        assert max(batch.input_ids.numel() for mine in passes for batch in mine) <= places


@pytest.mark.parametrize("apart", [False, True])
def test_every_row_is_measured_once_in_as_many_batches_on_all_workers(apart: bool) -> None:
    packed = documents()
    found = [list(every(packed, 2, Share(rank, 4, CPU), apart=apart)) for rank in range(4)]
    assert len({len(mine) for mine in found}) == 1
    targets = sum(int((batch.targets != IGNORED).sum()) for mine in found for batch in mine)
    assert targets == packed.label_tokens


def test_a_pass_without_rows_changes_no_gradient() -> None:
    model = tiny()
    model.zero_grad()
    mine = Batches(documents(), 4, 2, 0, Share(2, 3, CPU), fewest=FEWEST).at(0)
    assert (mine[1].targets == IGNORED).all()
    token_loss(model, mine[1]).backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def recipe(**resources: Any) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "x",
            "service": "x",
            "data": {"train": "x.jsonl"},
            "model": {"base": "./b"},
            "method": {"type": "full"},
            "run": {"steps": 1, "batch_rows": 8, "seq_tokens": 128},
            "resources": resources,
        }
    )


def test_a_range_of_workers_is_shown_and_is_no_part_of_the_jobs_identity() -> None:
    elastic, fixed = recipe(workers=[2, 4]), recipe(workers=2)
    assert (elastic.resources.shown_workers, fixed.resources.shown_workers) == ("2 to 4", "2")
    assert ledger.identity(elastic) == ledger.identity(fixed)


def test_the_queue_waits_for_the_least_and_counts_the_most(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.touch()
    wanted = recipe(workers=[2, 4], device="gpu")
    how: dict[str, Any] = {"folder": tmp_path, "package": None, "force": False, "now": 0.0}
    need = of_recipe(wanted, "seatrial_jobs.train", file, {}, Wishes("team"), **how).need
    assert (need.workers, need.most, need.counted_gpus) == (2, 4, 4.0)


@pytest.mark.parametrize(
    ("free", "going", "own", "expected"),
    [
        ({"a": {"CPU": 4.0}, "b": {"CPU": 3.0}}, [], {}, 3),
        ({"a": {"CPU": 0.0}, "b": {"CPU": 2.0}}, [], {"a": 2}, 3),
        ({"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}, ["a"], {"a": 2, "b": 1}, 2),
        ({"b": {}}, [], {"a": 2, "b": 1}, 1),
        ({"a": {"CPU": 1.9999999999}}, [], {}, 1),
    ],
    ids=["what others hold", "its own workers", "a node that goes", "a node that has gone", "rounding"],
)
def test_room_is_what_is_free_and_what_the_job_has_on_nodes_that_stay(
    free: dict[str, dict[str, float]], going: list[str], own: dict[str, int], expected: int
) -> None:
    assert fitting(free, going, own, {"CPU": 2.0}) == expected


@pytest.mark.parametrize(
    ("going", "workers"), [([], 3), (["b"], None), (["c"], None), (["d"], 3)], ids=["none", "b", "c", "d"]
)
def test_while_a_machine_of_the_jobs_goes_nothing_else_changes_their_number(
    monkeypatch: pytest.MonkeyPatch, going: list[str], workers: int | None
) -> None:
    """Workers on b and c, room for one more on a; whether the number changes, and to what."""
    free = {"a": {"CPU": 1.0}, "b": {"CPU": 0.0}, "c": {"CPU": 0.0}, "d": {"CPU": 0.5}}
    monkeypatch.setattr(elastic, "OWN", Counter({"b": 1, "c": 1}))
    state = SimpleNamespace(
        available_resources_per_node=lambda: free,
        state=SimpleNamespace(get_draining_nodes=lambda: dict.fromkeys(going, 0)),
    )
    monkeypatch.setattr(ray._private, "state", state)
    scaling = ScalingConfig(
        num_workers=(1, 4), elastic_resize_monitor_interval_s=0, resources_per_worker={"CPU": 1}
    )
    policy = elastic.FreeRoom(scaling)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: {key: {"CPU": 1.0} for key in free})
    running: Any = SimpleNamespace(start_time=0.0, num_workers=2)
    decision = policy.make_decision_for_running_worker_group(running, None)
    assert getattr(decision, "num_workers", None) == workers


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ([4, 2], "give the smaller number first"),
        ([3, 4], r"must be a multiple of resources.workers x run.accumulate \(3\)"),
        ([2, 9], r"must give each of resources.workers \(9\) a row"),
        ([0, 2], "greater than or equal to 1"),
    ],
)
def test_a_range_that_cannot_be_had_is_refused(workers: list[int], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(workers=workers)


def test_memory_is_that_of_the_fewest_workers() -> None:
    shape = Shape(128, 352, 4, 4, 2, 32, 1000, tied=True)
    one, two, elastic = (
        memory_of(recipe(workers=workers), shape, on_gpu=False) for workers in (1, 2, [1, 2])
    )
    assert elastic.activations == one.activations > two.activations
    assert elastic.gradients == two.gradients > one.gradients


def test_a_section_of_resources_tells_least_and_most() -> None:
    section = ResourcesSection(workers=(2, 4))
    assert (section.min_workers, section.max_workers) == (2, 4)
