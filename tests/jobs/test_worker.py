"""What a worker makes of errors that would come again, and of a base that is not the driver's."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from seatrial.errors import UserError
from seatrial.registry import runs, versions
from seatrial.registry.manifest import BaseRef, folder_digest
from seatrial.registry.runs import Point
from seatrial_jobs import ledger
from seatrial_jobs.batches import Share
from seatrial_jobs.recorder import Recorder, point
from seatrial_jobs.spec import HopelessError
from seatrial_jobs.storage import Storage
from seatrial_jobs.workers import worker


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (HopelessError("the loss became nan"), {"failed": "the loss became nan", "user_error": None}),
        (
            UserError("method.targets: x: mend it"),
            {"failed": None, "user_error": "method.targets: x: mend it"},
        ),
    ],
)
def test_an_error_that_would_come_again_is_returned_and_the_last_points_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: dict[str, str | None]
) -> None:
    storage = Storage.of("job", tmp_path)
    spec: Any = SimpleNamespace(storage=storage, driver=ledger.take_over(storage, force=False).driver)
    arrived: list[Point] = []

    def fails(_: Any, share: Share, recorder: Recorder | None) -> None:
        assert recorder is not None
        recorder.add([point("train/loss", 1.0, 1)])
        raise error

    monkeypatch.setattr(worker, "_share", lambda _: Share(0, 1, torch.device("cpu")))
    monkeypatch.setattr(worker, "_recorder", lambda _: Recorder(arrived.extend, dict, flush_every_s=60))
    monkeypatch.setattr(worker, "_work", fails)
    outcome = worker.work(spec)
    assert {key: outcome[key] for key in expected} == expected
    assert [point.step for point in arrived] == [1]


def test_a_password_of_mlflow_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        problem = OSError("http://me:SECRET@mlflow:5000/api: refused")

        def close(self, _: float) -> bool:
            return False

    for name in ("Keeper", "Notice", "Watch", "Batches", "Schedule"):
        monkeypatch.setattr(worker, name, MagicMock())
    for name in ("_model", "_apart", "optimizer_for", "_seed", "autocast_for", "loss_for", "train"):
        monkeypatch.setattr(worker, name, MagicMock())
    monkeypatch.setattr(worker.methods, "build", MagicMock())
    monkeypatch.setattr(worker.ray, "get", lambda _: (MagicMock(), None))
    monkeypatch.setattr(worker, "_evaluate", lambda *_: worker.Outcome(reasons=["no"]))
    spec: Any = MagicMock(mlflow_uri="http://me:SECRET@mlflow:5000", export=False)
    recorder: Any = Away()
    with pytest.raises(RuntimeError, match=r"MLflow at http://mlflow:5000 did not take") as caught:
        worker._work(spec, Share(0, 1, torch.device("cpu")), recorder)
    assert "SECRET" not in str(caught.value)


def test_a_place_that_this_machine_does_not_have_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.of("job", tmp_path)
    spec: Any = SimpleNamespace(storage=storage, driver=ledger.take_over(storage, force=False).driver)
    monkeypatch.setattr(worker, "_share", lambda _: Share(0, 1, torch.device("cpu")))
    monkeypatch.setattr(worker, "AWAY_S", 0.3)
    storage.clear()
    said = worker.work(spec)["user_error"]
    assert said == f"run.storage: {storage.uri}: not there on {socket.gethostname()}: share it"


def test_a_directory_with_other_files_than_the_drivers_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    digest = folder_digest(tiny_base)
    spec: Any = SimpleNamespace(base=BaseRef(ref="/models/base", digest=digest))
    worker._require_same_base(spec, tiny_base)
    other = tmp_path / "base"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^model\.base: /models/base: not the same files here"):
        worker._require_same_base(spec, other)


@pytest.mark.slow
def test_a_base_that_is_not_here_is_fetched_from_the_jobs_own_mlflow(
    mlflow_uri: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "made")
    manifest = versions.write_manifest(folder, kind="full", method="full")
    run = runs.open_run("base", attempt="1", params={}, tags={}, uri=mlflow_uri)
    runs.log_folder(run.run_id, folder, "model", uri=mlflow_uri)
    version = versions.register("fetched-base", run.run_id, manifest, uri=mlflow_uri)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # what another node's environment may say
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path / "home"))
    spec: Any = SimpleNamespace(
        base=BaseRef(ref=f"models:/fetched-base/{version}", digest=manifest.digest),
        base_path=str(tmp_path / "elsewhere"),
        mlflow_uri=mlflow_uri,
    )
    assert folder_digest(worker._base_path(spec)) == manifest.digest
