"""Keeping checkpoints: training goes on meanwhile, through a storage that is away, and restores exactly."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from job_processes import S3Server
from torch import nn

from seatrial.config.run import RunSection
from seatrial_jobs import ledger
from seatrial_jobs.batches import Share
from seatrial_jobs.checkpoints import checkpoint, keeper, writer
from seatrial_jobs.checkpoints.keeper import Keeper
from seatrial_jobs.loop import Schedule
from seatrial_jobs.storage import Storage

ALONE = Share(0, 1, torch.device("cpu"))
SCHEDULE = Schedule(1.0, 0, 100)


class Bench:
    """A model that is trained by hand, and its keeper."""

    def __init__(self, storage: Storage, **run: Any) -> None:
        settings = RunSection(**{"steps": 100, "checkpoint_every": 10, **run})
        self.spec: Any = SimpleNamespace(
            recipe=SimpleNamespace(run=settings),
            storage=storage,
            driver=(ledger.read(storage) or ledger.take_over(storage, force=False)).driver,
            tidies=True,
        )
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 256), nn.Linear(256, 8))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.keeper = Keeper(self.spec, ALONE, self.model, self.optimizer, SCHEDULE, None)

    def train(self, steps: int = 1) -> float:
        for _ in range(steps):
            loss = self.model(torch.randn(4, 8)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return float(loss.detach())

    def names(self) -> list[str]:
        return [kept.name for kept in checkpoint.complete(self.spec.storage)]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.of("job", tmp_path)


def test_what_is_saved_is_the_moment_of_saving_however_late_it_is_written(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    allowed, upload = threading.Event(), checkpoint.upload

    def held_up(*arguments: Any) -> Any:
        allowed.wait(10)
        return upload(*arguments)

    monkeypatch.setattr(checkpoint, "upload", held_up)
    bench = Bench(storage)
    bench.train(3)
    bench.keeper.save(10)
    following = [bench.train() for _ in range(4)]
    assert bench.names() == [], "training went on before anything was in storage"
    allowed.set()
    bench.keeper.save(20, wait=True)

    other = Bench(storage)
    state = other.keeper.go_back()
    assert state is not None
    assert state.step == 20
    storage.below(bench.names()[-1]).clear()
    again = Bench(storage)
    restored = again.keeper.restore()
    assert restored is not None
    assert restored.step == 10
    assert [again.train() for _ in range(4)] == following


def test_the_best_by_heldout_loss_outlives_newer_ones(storage: Storage):
    bench = Bench(storage, keep_checkpoints=2, keep_best_checkpoints=1)
    bench.train()
    for step, heldout in ((10, 2.0), (20, 1.0), (30, 1.5), (40, None), (50, 1.7)):
        bench.keeper.save(step, heldout=heldout, wait=True)
    assert [checkpoint.step_of(name) for name in bench.names()] == [20, 40, 50]


def test_going_back_is_to_a_regular_checkpoint_only(storage: Storage):
    bench = Bench(storage)
    assert bench.keeper.go_back() is None
    bench.train()
    bench.keeper.save(10, wait=True)
    bench.train()
    bench.keeper.save(13, wait=True)
    state = bench.keeper.go_back()
    assert state is not None
    assert state.step == 10


def test_checkpoints_of_a_preemption_leave_the_one_that_a_spike_goes_back_to(storage: Storage):
    bench = Bench(storage, keep_checkpoints=1, keep_best_checkpoints=0, spikes={"action": "rollback"})
    bench.train()
    for step in (10, 20, 23, 27):
        bench.keeper.save(step, wait=True)
    assert [checkpoint.step_of(name) for name in bench.names()] == [20, 27]
    state = bench.keeper.go_back()
    assert state is not None
    assert state.step == 20
    bench.keeper.save(30, wait=True)
    assert [checkpoint.step_of(name) for name in bench.names()] == [30]


@pytest.mark.parametrize("sound", [[10], []])
def test_a_damaged_checkpoint_takes_no_place_of_a_sound_one(storage: Storage, sound: list[int]):
    bench = Bench(storage, keep_checkpoints=len(sound) + 1, keep_best_checkpoints=0)
    bench.train()
    for step in [*sound, 20]:
        bench.keeper.save(step, heldout=1.0, wait=True)
    spoil(storage, bench.names()[-1])
    again = Bench(storage, keep_checkpoints=1, keep_best_checkpoints=0)
    state = again.keeper.restore()
    assert ([state.step] if state else []) == sound
    again.keeper.save(13, wait=True)  # as when a machine is taken away
    assert [checkpoint.step_of(name) for name in again.names()] == [13]
    third = Bench(storage).keeper.restore()
    assert third is not None
    assert third.step == 13


def spoil(storage: Storage, name: str) -> None:
    """Change the last byte of a checkpoint's weights."""
    path = Path(storage.uri) / name / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("what", ["restore", "go_back"])
def test_a_storage_that_is_away_for_a_while_is_waited_for_before_it_is_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, what: str
):
    bench = Bench(storage)
    bench.train()
    bench.keeper.save(10, wait=True)
    again = Bench(storage)
    connect, refused = Storage.connect, []

    def away_at_first(self: Storage) -> Any:
        if len(refused) < 6:
            refused.append(self.uri)
            raise OSError("AWS Error NETWORK_CONNECTION: couldn't connect")
        return connect(self)

    monkeypatch.setattr(writer, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(Storage, "connect", away_at_first)
    state = getattr(again.keeper, what)()
    assert state is not None
    assert state.step == 10
    assert len(refused) == 6


def test_a_directory_that_is_away_for_a_while_ends_nothing(storage: Storage, tmp_path: Path):
    bench = Bench(storage)
    bench.train()
    bench.keeper.save(10, wait=True)
    place = Path(storage.uri).rename(tmp_path / "unmounted")
    bench.keeper.save(20)
    end = time.monotonic() + 30
    while not bench.keeper._writer.struggling:
        assert time.monotonic() < end
        assert bench.keeper._ended(0) is None
        time.sleep(0.01)
    assert not Path(storage.uri).exists(), "nothing is written to where it was"
    place.rename(storage.uri)
    assert bench.keeper._ended(30) is None
    assert [checkpoint.step_of(name) for name in bench.names()] == [10, 20]


def test_a_driver_that_was_superseded_completes_no_checkpoint(storage: Storage):
    bench = Bench(storage)
    bench.train()
    bench.keeper.save(10, wait=True)
    ledger.take_over(storage, force=False)
    with pytest.raises(ledger.SupersededError):
        bench.keeper.save(20, wait=True)
    assert [checkpoint.step_of(name) for name in bench.names()] == [10]


def test_a_storage_that_does_not_come_back_ends_the_wait_for_the_last_checkpoint(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    def away(*_: Any, **__: Any) -> Any:
        raise OSError("connection refused")

    monkeypatch.setattr(keeper, "PATIENCE_S", 0.3)
    bench = Bench(storage)
    bench.train()
    monkeypatch.setattr(checkpoint, "upload", away)
    with pytest.raises(RuntimeError, match="took no checkpoint: connection refused"):
        bench.keeper.save(100, wait=True)


@pytest.mark.slow
@pytest.mark.usefixtures("s3_keys")
def test_a_server_that_is_killed_for_a_while_delays_checkpoints_and_nothing_else(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "LONGEST_PAUSE_S", 1.0)
    bench = Bench(Storage.of(s3.uri("outage"), tmp_path))
    bench.train()
    bench.keeper.save(10, wait=True)
    s3.stop()
    try:
        bench.train()
        bench.keeper.save(20)
        end = time.monotonic() + 60
        while not bench.keeper._writer.struggling:
            assert time.monotonic() < end
            time.sleep(0.05)
        for step in range(30, 60, 10):  # while the server is away, saving costs no time and raises nothing
            bench.train()
            bench.keeper.save(step)
    finally:
        s3.start()
    following = bench.train()
    assert bench.keeper._ended(60) is None
    assert [checkpoint.step_of(name) for name in bench.names()] == [10, 20], "the outage's own come after it"
    bench.keeper.save(60, wait=True)
    assert [checkpoint.step_of(name) for name in bench.names()] == [20, 60]
    again = Bench(bench.spec.storage)
    state = again.keeper.restore()
    assert state is not None
    assert state.step == 60
    assert again.train() != following
