"""Checkpoints: everything an exact resume needs, readable without running code from the file.

A checkpoint is a folder of safetensors and JSON: trained weights, optimizer, random generators, the step
(which is the data position as well, since the order of rows is a function of the step) and measurements that
MLflow has not confirmed. `marker.json` holds the SHA-256 of every other file and is uploaded last, so a
folder without it is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from seatrial_jobs.storage import Storage

MARKER = "marker.json"
PREFIX = "checkpoint-"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


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


def name_of(step: int) -> str:
    """A new folder for the checkpoint after ``step`` steps; names sort by step.

    Never the same twice: an upload that was cut off and the one that follows it do not share a folder.
    """
    return f"{PREFIX}{step:08d}-{secrets.token_hex(3)}"


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write a checkpoint into the local ``folder``, marker included."""
    save_file(_weights(model), folder / WEIGHTS)
    tensors, scalars, groups = _pack_optimizer(model, optimizer)
    save_file(tensors, folder / OPTIMIZER)
    content = {**vars(state), "optimizer": {"scalars": scalars, "groups": groups}}
    (folder / STATE).write_text(json.dumps(content), encoding="utf-8")
    digests = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / MARKER).write_text(json.dumps({"step": state.step, "sha256": digests}), encoding="utf-8")


def upload(folder: Path, storage: Storage, name: str) -> None:
    """Copy a checkpoint to storage, its marker last."""
    for path in sorted(folder.iterdir()):
        if path.name != MARKER:
            storage.put(path, f"{name}/{path.name}")
    storage.write(f"{name}/{MARKER}", (folder / MARKER).read_bytes())


def newest(storage: Storage, into: Path, *, first: str | None = None) -> tuple[Path | None, list[str]]:
    """Fetch a checkpoint whose digests hold: ``first`` if it can be had, else the newest that can.

    Returns:
        Its local folder below ``into``, if there is one, and why others were passed over.
    """
    passed_over = []
    kept = [name for name in reversed(storage.folders()) if name.startswith(PREFIX)]
    for name in ([first] if first in kept else []) + [name for name in kept if name != first]:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=into))
        problem = fetch(storage, name, folder)
        if problem is None:
            return folder, passed_over
        passed_over.append(f"{storage.uri}/{name}: {problem}")
    return None, passed_over


def tidy(storage: Storage) -> None:
    """Delete what uploads that were cut off have left behind."""
    for name in storage.folders():
        if name.startswith(PREFIX) and storage.read(f"{name}/{MARKER}") is None:
            storage.below(name).clear()


def fetch(storage: Storage, name: str, folder: Path) -> str | None:
    """Copy a checkpoint from storage into ``folder``; the reason when it is not one."""
    try:
        marker = storage.read_json(f"{name}/{MARKER}")
    except ValueError:
        return "its marker is no JSON"
    if marker is None:
        return "it has no marker: its upload did not end"
    for file, expected in marker["sha256"].items():
        if file not in (WEIGHTS, OPTIMIZER, STATE):
            return f"its marker names {file!r}, which is no part of a checkpoint"
        try:
            actual = storage.fetch(f"{name}/{file}", folder / file)
        except FileNotFoundError:
            return f"{file} is missing"
        if actual != expected:
            return f"{file} has sha256 {actual[:12]}, its marker says {expected[:12]}"
    return None


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Put a checkpoint's weights and optimizer state in place, and return the rest.

    Raises:
        ValueError: it belongs to another model.
    """
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    packed = content.pop("optimizer")
    weights = load_file(folder / WEIGHTS)
    mine = _weights(model)
    if weights.keys() != mine.keys():
        raise ValueError(f"{folder.name}: its weights have other names than the model's")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(weights[name])
    _unpack_optimizer(model, optimizer, load_file(folder / OPTIMIZER), packed["scalars"], packed["groups"])
    return State(**content)


def generators() -> dict[str, Any]:
    """The state of this process's random generators, as JSON values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    found: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state().tolist()
    return found


def restore_generators(found: Mapping[str, Any]) -> None:
    """Put the random generators back where :func:`generators` found them."""
    torch.set_rng_state(torch.tensor(found["torch"], dtype=torch.uint8))
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(found["cuda"], dtype=torch.uint8))


def plain(model: nn.Module) -> nn.Module:
    """The module inside a data-parallel wrapper."""
    inner: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner


def not_finite(model: nn.Module) -> str | None:
    """Name of a trained parameter with a value that is not finite, if there is one."""
    trained = _weights(model)
    sick = torch.stack([~torch.isfinite(weights).all() for weights in trained.values()])
    return next((name for name, is_sick in zip(trained, sick.tolist(), strict=True) if is_sick), None)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters by name; a tied parameter appears once."""
    return {n: p.detach() for n, p in plain(model).named_parameters() if p.requires_grad}


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in its own order."""
    by_id = {id(parameter): name for name, parameter in plain(model).named_parameters()}
    return [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _pack_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, Any]]]:
    names = _names(model, optimizer)
    whole = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in whole["state"].items():
        for key, value in values.items():
            place = f"{names[index]}/{key}"
            if isinstance(value, torch.Tensor):
                tensors[place] = value.detach().contiguous()
            else:
                scalars[place] = value
    return tensors, scalars, whole["param_groups"]


def _unpack_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
) -> None:
    index_of = {name: index for index, name in enumerate(_names(model, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for place, value in {**tensors, **scalars}.items():
        name, _, key = place.rpartition("/")
        state.setdefault(index_of[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": [dict(group) for group in groups]})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
