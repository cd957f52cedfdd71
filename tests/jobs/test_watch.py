"""Between steps: what is recorded, and when training must stop."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from seatrial.config.run import RunSection, SpikesSection
from seatrial.registry import runs
from seatrial.registry.runs import Point
from seatrial_jobs.batches import Batches, Share
from seatrial_jobs.checkpoints import checkpoint, generators
from seatrial_jobs.checkpoints.keeper import Keeper
from seatrial_jobs.data.chat import Encoded
from seatrial_jobs.data.pack import pack
from seatrial_jobs.loop import Schedule, Step
from seatrial_jobs.recorder import Recorder
from seatrial_jobs.spec import HopelessError
from seatrial_jobs.storage import Storage
from seatrial_jobs.workers import watch as watching
from seatrial_jobs.workers.watch import Watch

ALONE = Share(0, 1, torch.device("cpu"))
ROWS = pack([Encoded(list(range(1, 17)), list(range(1, 17)))] * 8, 16)


class Bench:
    """A watch with its clock in our hand."""

    def __init__(self, tmp_path: Path, **run: Any) -> None:
        self.now = 0.0
        self.points: list[Point] = []
        settings = RunSection(**{"steps": 100, "seq_tokens": 16, "batch_rows": 4, **run})
        self.spec: Any = SimpleNamespace(
            recipe=SimpleNamespace(run=settings),
            storage=Storage.of("job", tmp_path),
            run_id="",
            mlflow_uri="",
        )
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.recorder = Recorder(self.points.extend, dict, flush_every_s=0.01)
        self.watch = self.made()
        self.watch.begin(Batches(ROWS, 4, 1, 0, ALONE))

    def made(self, tokens_digest: str = "") -> Watch:
        parts = (self.spec, ALONE, self.model, self.optimizer, Schedule(1.0, 0, 100), self.recorder)
        keeper = Keeper(*parts, tokens_digest=tokens_digest)
        return Watch(keeper, None, nullcontext, clock=lambda: self.now)

    def step(self, number: int, *, takes_s: float, loss: float = 1.0) -> None:
        self.now += takes_s
        self.watch(Step(number, torch.tensor(loss), torch.tensor(0.5), 0.1))

    def recorded(self, key: str) -> list[tuple[int, float]]:
        assert self.recorder.close(5)
        return [(point.step, point.value) for point in self.points if point.key == key]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, evaluate_every=8)


def test_the_rate_is_of_all_steps_since_the_last_reading(bench: Bench):
    for number in range(1, 5):  # handed out at once; the fourth waits for the device
        bench.step(number, takes_s=0.1 if number < 4 else 1.7)
    tokens = 4 * 16
    assert bench.recorded("train/tokens_per_s") == [(4, pytest.approx(4 * tokens / 2.0))]
    assert [step for step, _ in bench.recorded("train/loss")] == [1, 2, 3, 4]


def test_the_time_of_a_measurement_is_in_no_steps_rate(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def slow(step: int) -> None:
        bench.now += 100

    monkeypatch.setattr(bench.watch, "evaluate", slow)
    for number in range(1, 17):
        bench.step(number, takes_s=0.1)
    rate = pytest.approx(4 * 16 / 0.1)
    assert bench.recorded("train/tokens_per_s") == [(8, rate), (16, rate)]


@pytest.mark.parametrize("chunk", [None, 8])
def test_the_heldout_loss_is_computed_in_the_recipes_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int | None
):
    def measured(*_: Any, apart: bool, chunk_tokens: int | None) -> float:
        assert chunk_tokens == chunk
        return 1.5

    monkeypatch.setattr(watching, "heldout_loss", measured)
    monkeypatch.setattr(watching.ray.train, "report", lambda _: None)
    bench = Bench(tmp_path, loss_chunk_tokens=chunk)
    bench.watch.heldout = ROWS
    assert bench.watch.evaluate(100) == 1.5


def test_a_loss_that_is_not_finite_ends_the_job_at_the_next_check_and_is_told(bench: Bench):
    bench.step(1, takes_s=2.0)
    bench.step(2, takes_s=2.0, loss=float("nan"))
    for number in range(3, 8):
        bench.step(number, takes_s=2.0)
    with pytest.raises(HopelessError, match="the loss became nan"):
        bench.step(8, takes_s=2.0)
    assert [step for step, _ in bench.recorded("train/loss")] == [1, *range(3, 9)]


def test_weights_that_the_last_update_spoilt_are_never_saved(tmp_path: Path):
    bench = Bench(tmp_path, checkpoint_every=2)
    bench.step(1, takes_s=0.1)
    with torch.no_grad():
        bench.model.weight[0, 0] = torch.nan
    with pytest.raises(HopelessError, match="after step 2 the weights weight are not finite"):
        bench.step(2, takes_s=0.1)
    assert bench.spec.storage.folders() == []


@pytest.mark.parametrize(
    ("kept", "reason"), [("these", None), ("others", "was trained on other tokens: .*--force")]
)
def test_a_checkpoint_of_other_tokens_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, reason: str | None
):
    bench = Bench(tmp_path)
    monkeypatch.setattr(Keeper, "_tag", lambda *_: None)  # no MLflow here
    state = checkpoint.State(7, vars(Schedule(1.0, 0, 100)), [generators.states()], tokens_digest=kept)
    place, name = tmp_path / "local", checkpoint.name_of(7)
    place.mkdir()
    checkpoint.write(place, checkpoint.look(bench.model, bench.optimizer), state)
    checkpoint.mark(bench.spec.storage, name, checkpoint.upload(place, bench.spec.storage, name))
    watch = bench.made(tokens_digest="these")
    if reason is None:
        assert watch.restore() == 7
    else:
        with pytest.raises(HopelessError, match=reason):
            watch.restore()


def test_events_that_were_kept_are_told_again_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: dict[str, Any] = {}
    monkeypatch.setattr(runs, "log_json", lambda run_id, name, value, uri: told.update({name: value}))
    monkeypatch.setattr(runs, "set_tags", lambda run_id, tags, uri: told.update(tags))
    events = [{"step": 7, "what": "loss", "action": "skip", "rows": [3, 9]}]
    memory = {"detector": {"losses": [], "norms": []}, "factor": 1.0, "events": events}
    bench = Bench(tmp_path)
    watch = bench.made()
    guard = watch.watch_for_spikes(SpikesSection(), Batches(ROWS, 4, 1, 0, ALONE))
    monkeypatch.setattr(watch.keeper, "restore", lambda: checkpoint.State(10, {}, [], guard=memory))
    assert watch.restore() == 10
    assert bench.recorder.close(5)
    assert guard.events == events
    assert told["spikes.json"]["rows"] == [[3, 9]]
    assert told["seatrial.spikes"] == "1"
