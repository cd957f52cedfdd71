"""Checkpoints come back exactly, and a damaged or unfinished one is passed over."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seatrial_jobs.checkpoints import checkpoint, generators
from seatrial_jobs.checkpoints.checkpoint import State
from seatrial_jobs.storage import Storage


class Net(nn.Module):
    """Two layers, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.trained = nn.Linear(4, 2)


def fresh(seed: int) -> tuple[Net, torch.optim.AdamW]:
    torch.manual_seed(seed)
    net = Net()
    trained = [p for p in net.parameters() if p.requires_grad]
    return net, torch.optim.AdamW(trained, lr=0.1, fused=True)


def step(net: Net, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = net.trained(net.frozen(torch.randn(8, 4))).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def save(net: Net, optimizer: torch.optim.Optimizer, storage: Storage, place: Path, at: int) -> str:
    return keep(
        net, optimizer, storage, place, State(at, {"peak": 0.1}, [generators.states()], [{"key": "k"}])
    )


def keep(net: Net, optimizer: torch.optim.Optimizer, storage: Storage, place: Path, state: State) -> str:
    place.mkdir(exist_ok=True)
    name = checkpoint.name_of(state.step)
    checkpoint.write(place, checkpoint.look(net, optimizer), state)
    checkpoint.mark(storage, name, checkpoint.upload(place, storage, name), heldout=state.heldout)
    return name


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.of("store", tmp_path)


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(storage: Storage, tmp_path: Path):
    net, optimizer = fresh(0)
    for _ in range(3):
        step(net, optimizer)
    save(net, optimizer, storage, tmp_path / "local", 3)
    expected = [step(net, optimizer) for _ in range(5)]
    drawn = (random.random(), np.random.random(), float(torch.rand(())))  # noqa: S311

    other, its_optimizer = fresh(0)
    torch.manual_seed(99)
    folder, passed_over = checkpoint.newest(storage, tmp_path)
    assert folder is not None
    assert not passed_over
    state = checkpoint.load(folder, other, its_optimizer)
    assert (state.step, state.unlogged) == (3, [{"key": "k"}])
    generators.restore(state.generators[0])
    assert [step(other, its_optimizer) for _ in range(5)] == expected
    assert (random.random(), np.random.random(), float(torch.rand(()))) == drawn  # noqa: S311


def test_only_trained_weights_are_kept_and_nothing_can_run_code(storage: Storage, tmp_path: Path):
    name = save(*fresh(0), storage, tmp_path / "local", 1)
    files = {path.name for path in (Path(storage.uri) / name).iterdir()}
    assert files == {"weights.safetensors", "optimizer.safetensors", "state.json", "marker.json"}
    from safetensors.torch import load_file

    assert set(load_file(Path(storage.uri) / name / "weights.safetensors")) == {
        "trained.weight",
        "trained.bias",
    }


@pytest.mark.parametrize("damage", ["marker", "no digests", "weights", "missing", "extra"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    storage: Storage, tmp_path: Path, damage: str
):
    net, optimizer = fresh(0)
    step(net, optimizer)
    save(net, optimizer, storage, tmp_path / "local", 1)
    newer = Path(storage.uri) / save(net, optimizer, storage, tmp_path / "local", 2)
    if damage == "marker":
        (newer / "marker.json").unlink()
    elif damage == "no digests":
        (newer / "marker.json").write_text("[]")
    elif damage == "weights":
        content = bytearray((newer / "weights.safetensors").read_bytes())
        content[-1] ^= 1
        (newer / "weights.safetensors").write_bytes(content)
    elif damage == "missing":
        (newer / "optimizer.safetensors").unlink()
    else:
        marker = json.loads((newer / "marker.json").read_text())
        marker["sha256"]["../../outside"] = "0"
        (newer / "marker.json").write_text(json.dumps(marker))
    folder, passed_over = checkpoint.newest(storage, tmp_path)
    assert folder is not None
    assert "00000001" in folder.name
    assert list(passed_over) == [newer.name]


def test_the_marker_is_uploaded_last(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    put, write = Storage.put, Storage.write
    monkeypatch.setattr(Storage, "put", lambda s, local, name: order.append(name) or put(s, local, name))
    monkeypatch.setattr(
        Storage, "write", lambda s, name, content: (order.append(name), write(s, name, content))
    )
    name = save(*fresh(0), storage, tmp_path / "local", 1)
    assert order[-1] == f"{name}/marker.json"
    assert len(order) == 4


def test_tidying_deletes_unfinished_uploads_only(storage: Storage, tmp_path: Path):
    kept = save(*fresh(0), storage, tmp_path / "local", 1)
    storage.write("checkpoint-00000002-abcdef/weights.safetensors", b"half")
    storage.write("something-else/file", b"x")
    checkpoint.tidy(storage)
    assert storage.folders() == [kept, "something-else"]


def test_a_checkpoint_keeps_the_digest_of_the_tokens_it_was_trained_on(storage: Storage, tmp_path: Path):
    net, optimizer = fresh(0)
    keep(net, optimizer, storage, tmp_path / "local", State(1, {}, [], tokens_digest="abc"))
    folder, _ = checkpoint.newest(storage, tmp_path)
    assert folder is not None
    assert checkpoint.load(folder, net, optimizer).tokens_digest == "abc"


def test_trained_weights_that_are_not_finite_are_named():
    net, _ = fresh(0)
    with torch.no_grad():
        net.frozen.weight[0, 0] = torch.nan
    assert checkpoint.not_finite(net) is None
    with torch.no_grad():
        net.trained.bias[1] = torch.inf
    assert checkpoint.not_finite(net) == "trained.bias"
    with torch.no_grad():
        net.trained.bias[0] = -torch.inf
    assert checkpoint.not_finite(net) == "trained.bias"
    with torch.no_grad():
        net.trained.bias[:] = 3e38
    assert checkpoint.not_finite(net) is None, "their sum is too large, they are not"


def test_weights_of_another_model_are_refused(storage: Storage, tmp_path: Path):
    save(*fresh(0), storage, tmp_path / "local", 1)
    folder, _ = checkpoint.newest(storage, tmp_path)
    other: Any = nn.Linear(4, 2)
    assert folder is not None
    with pytest.raises(ValueError, match="other names"):
        checkpoint.load(folder, other, torch.optim.AdamW(other.parameters()))
