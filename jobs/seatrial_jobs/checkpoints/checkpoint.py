"""Checkpoints: everything an exact resume needs, readable without running code from the file.

A checkpoint is a folder of safetensors and JSON: trained weights, optimizer, random generators, the step
(which is the data position as well, since the order of rows is a function of the step) and measurements that
MLflow has not confirmed. Of a sharded model each worker writes its own part, in the format of
`torch.distributed.checkpoint`. `marker.json` holds the SHA-256 of every other file and is uploaded last, so a
folder without it is no checkpoint.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from seatrial_jobs.checkpoints import moments
from seatrial_jobs.checkpoints.retention import Kept, superfluous
from seatrial_jobs.storage import Storage

MARKER = "marker.json"
PREFIX = "checkpoint-"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
KNOWN = re.compile(r"weights\.safetensors|optimizer\.safetensors|state\.json|rank-\d{5}\.safetensors")
PARTS_EVERY_S = 0.2
"""Seconds between two looks for the other workers' parts."""


@dataclass
class State:
    """What is not a tensor of the model or the optimizer."""

    step: int
    """Optimizer steps done; also the position in the data."""
    schedule: dict[str, float]
    """Peak, warm-up and length of the schedule: a resumed job must have the same."""
    generators: list[dict[str, Any]]
    """Random generators of each worker, by rank."""
    unlogged: list[dict[str, Any]] = field(default_factory=list)
    """Measurements that MLflow had not confirmed."""
    tokens_digest: str = ""
    """Of the packed training rows: with others, the position in the data would mean another place."""
    heldout: float | None = None
    """Held-out loss at this step, if it was measured."""
    guard: dict[str, Any] | None = None
    """What the watch for spikes remembers."""
    left: str | None = None
    """The run's tag that tells why all workers went after this step; those that left may not have set it."""


@dataclass(frozen=True)
class Snapshot:
    """Weights and optimizer at one moment."""

    weights: dict[str, torch.Tensor]
    """By name."""
    optimizer: dict[str, torch.Tensor]
    """By `parameter/key`."""
    settings: dict[str, Any]
    """The optimizer's numbers that are no tensors."""

    @property
    def sharded(self) -> bool:
        """Whether each worker has a part of it only."""
        return any(isinstance(tensor, DTensor) for tensor in self.weights.values())


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Memory is the limit here, and on busy cores threads of a team wait long for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Staging:
    """Host memory for snapshots, used again for each: one must be written before the next is taken."""

    def __init__(self, device: torch.device) -> None:
        gpu = device.type == "cuda"
        options = StagingOptions(
            use_pinned_memory=gpu,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=gpu,
        )
        self._stager = DefaultStager(options)

    @_on_one_thread()
    def copy(self, snapshot: Snapshot) -> Snapshot:
        """The same values in host memory, which training does not change."""
        groups = {"weights": snapshot.weights, "optimizer": snapshot.optimizer}
        copied: Any = self._stager.stage(groups)
        return Snapshot(copied["weights"], copied["optimizer"], snapshot.settings)


def name_of(step: int) -> str:
    """A new folder for the checkpoint after ``step`` steps; names sort by step.

    Never the same twice: an upload that was cut off and the one that follows it do not share a folder.
    """
    return f"{PREFIX}{step:08d}-{secrets.token_hex(3)}"


def step_of(name: str) -> int:
    """The step in a checkpoint's name."""
    return int(name.removeprefix(PREFIX).partition("-")[0])


def look(model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    """The weights and the optimizer's state themselves, which the next step changes."""
    tensors, scalars, groups = moments.take(_names(model, optimizer), optimizer)
    return Snapshot(_weights(model), tensors, {"scalars": scalars, "groups": groups})


def write(folder: Path, snapshot: Snapshot, state: State | None, rank: int = 0) -> None:
    """Write this worker's files into the local ``folder``: its tensors, and ``state`` where it is given."""
    if snapshot.sharded:
        _write_part(folder, {**snapshot.weights, **snapshot.optimizer}, rank)
    else:
        save_file(snapshot.weights, folder / WEIGHTS)
        save_file(snapshot.optimizer, folder / OPTIMIZER)
    if state is not None:
        content = {**vars(state), "optimizer": snapshot.settings}
        (folder / STATE).write_text(json.dumps(content), encoding="utf-8")


def upload(folder: Path, storage: Storage, name: str) -> dict[str, str]:
    """Copy a worker's files to storage; their digests, which :func:`mark` wants."""
    return {path.name: storage.put(path, f"{name}/{path.name}") for path in sorted(folder.iterdir())}


def mark(storage: Storage, name: str, digests: Mapping[str, str], *, heldout: float | None = None) -> None:
    """Write the marker, which makes a checkpoint of the files."""
    value = {"step": step_of(name), "heldout": heldout, "sha256": digests}
    storage.write(f"{name}/{MARKER}", json.dumps(value).encode())


def sign(storage: Storage, name: str, rank: int, digests: Mapping[str, str]) -> None:
    """Leave word that this worker's files are in storage."""
    storage.write_json(f"{name}/part-{rank:05d}.json", digests)


def signed(storage: Storage, name: str, workers: int, timeout_s: float) -> dict[str, str]:
    """The digests of all workers' files, when each has left word.

    Raises:
        TimeoutError: one has not, within ``timeout_s``.
    """
    end = time.monotonic() + timeout_s
    digests: dict[str, str] = {}
    for rank in range(workers):
        while (part := storage.read_json(f"{name}/part-{rank:05d}.json")) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"{storage.uri}/{name}: no word of worker {rank}")
            time.sleep(PARTS_EVERY_S)
        digests.update(part)
    return digests


def _write_part(folder: Path, tensors: dict[str, torch.Tensor], rank: int) -> None:
    """This worker's part of sharded tensors, each with its place in the whole, without asking the others."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(tensors, storage_writer=writer, no_dist=True)
    for written in folder.glob("shard-*.safetensors"):  # one, or none where the worker has no part
        written.rename(folder / f"rank-{rank:05d}.safetensors")


def complete(storage: Storage) -> list[Kept]:
    """The checkpoints in storage that have a marker, by step."""
    found = []
    for name in storage.folders():
        if name.startswith(PREFIX) and (marker := _marker(storage, name)) is not None:
            found.append(Kept(name, marker.get("heldout")))
    return found


def retain(
    storage: Storage, *, newest: int, best: int, every: int | None = None, before: float = math.inf
) -> None:
    """Delete the checkpoints that need not stay, of those ``before`` a step.

    Of those at a multiple of ``every`` steps the newest stays in any case.
    """
    present = complete(storage)
    regular = [kept.name for kept in present if every and step_of(kept.name) % every == 0]
    for name in superfluous(present, newest=newest, best=best):
        if step_of(name) < before and name not in regular[-1:]:
            storage.below(name).clear()


def _marker(storage: Storage, name: str) -> dict[str, Any] | None:
    """``None`` when there is none that can be read."""
    try:
        marker = storage.read_json(f"{name}/{MARKER}")
    except ValueError:
        return None
    return marker if isinstance(marker, dict) else None


def newest(storage: Storage, into: Path, *, every: int = 1) -> tuple[Path | None, dict[str, str]]:
    """Fetch the newest checkpoint whose digests hold, of those at a multiple of ``every`` steps.

    Returns:
        Its local folder below ``into``, which has its name, and why others were passed over, by name.
    """
    passed_over: dict[str, str] = {}
    kept = [name for name in reversed(storage.folders()) if name.startswith(PREFIX)]
    for name in (name for name in kept if step_of(name) % every == 0):
        problem = fetch(storage, name, folder := into / name)
        if problem is None:
            return folder, passed_over
        passed_over[name] = problem
    return None, passed_over


def tidy(storage: Storage) -> None:
    """Delete what uploads that were cut off have left behind."""
    for name in storage.folders():
        if name.startswith(PREFIX) and storage.read(f"{name}/{MARKER}") is None:
            storage.below(name).clear()


def fetch(storage: Storage, name: str, folder: Path) -> str | None:
    """Copy a checkpoint from storage into ``folder``, which may not be there yet; what is wrong with it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        marker = storage.read_json(f"{name}/{MARKER}")
    except ValueError:
        return "its marker is no JSON"
    if marker is None:
        return "it has no marker: its upload did not end"
    if not isinstance(marker, dict) or not isinstance(digests := marker.get("sha256"), dict):
        return "its marker names no files"
    for file, expected in digests.items():
        if not KNOWN.fullmatch(file):
            return f"its marker names {file!r}, which is no part of a checkpoint"
        try:
            actual = storage.fetch(f"{name}/{file}", folder / file)
        except FileNotFoundError:
            return f"{file} is missing"
        if actual != expected:
            return f"{file} has sha256 {actual[:12]}, its marker says {str(expected)[:12]}"
    return None


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Put a checkpoint's weights and optimizer state in place, and return the rest.

    Raises:
        ValueError: it belongs to another model.
    """
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    packed = content.pop("optimizer")
    mine = _weights(model)
    reader = dcp.HuggingFaceStorageReader(str(folder))
    stored: Any = reader.read_metadata().state_dict_metadata
    if {key for key in stored if "/" not in key} != mine.keys():
        raise ValueError(f"{folder.name}: its weights have other names than the model's")
    tensors = {key: _room_for(key, meta, mine) for key, meta in stored.items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    state = {key: tensor for key, tensor in tensors.items() if "/" in key}
    moments.put(_names(model, optimizer), optimizer, {**state, **packed["scalars"]}, packed["groups"])
    return State(**content)


def _room_for(key: str, meta: Any, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Where a stored tensor is read to: the weight itself, or new memory that is sharded like it."""
    if key in weights:
        return weights[key]
    weight = weights[key.rpartition("/")[0]]
    if weight.shape == meta.size:
        return torch.zeros_like(weight, dtype=meta.properties.dtype)
    return torch.zeros(meta.size, dtype=meta.properties.dtype)


def plain(model: nn.Module) -> nn.Module:
    """The module inside a data-parallel wrapper."""
    inner: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner


@_on_one_thread()
def not_finite(model: nn.Module) -> str | None:
    """Name of a trained parameter with a value that is not finite, if this worker has one."""
    trained = {name: _local(weights) for name, weights in _weights(model).items()}
    # A sum reads each value once and makes no copy; what is not finite shows in it, and rarely anything else.
    sums = torch.stack([weights.sum(dtype=torch.float32) for weights in trained.values()]).tolist()
    suspects = [name for name, total in zip(trained, sums, strict=True) if not math.isfinite(total)]
    return next((name for name in suspects if not torch.isfinite(trained[name]).all()), None)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters by name; a tied parameter appears once."""
    return {n: p.detach() for n, p in plain(model).named_parameters() if p.requires_grad}


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in its own order."""
    by_id = {id(parameter): name for name, parameter in plain(model).named_parameters()}
    return [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]
