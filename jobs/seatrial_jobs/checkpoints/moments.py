"""An optimizer's state by the names of its parameters, apart into tensors and JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def take(
    names: Sequence[str], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, Any]]]:
    """Its tensors and its other values, both by `parameter/key`, and its groups' settings.

    ``names`` are those of its parameters, in its own order.
    """
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


def put(
    names: Sequence[str],
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Give an optimizer the state that :func:`take` found, tensors and other values together."""
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for place, value in values.items():
        name, _, key = place.rpartition("/")
        state.setdefault(index_of[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": [dict(group) for group in groups]})
