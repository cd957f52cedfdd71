"""One model on several workers: each has a copy of it, or a part.

With a part each, every worker keeps its share of every weight, of its gradient and of its optimizer's state.
A layer is put together for its own computation, given up after it, and put together again in the backward
pass (Zhao et al. 2023, arXiv:2304.11277; torch's FSDP2). So every forward pass is one of all workers, and all
must make as many of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from seatrial.errors import UserError
from seatrial_jobs.batches import Share

T = TypeVar("T")


def spread(model: nn.Module, share: Share, sharding: Literal["none", "full"], *, halves: bool) -> nn.Module:
    """The model, equal on all workers, on this worker's device and ready to exchange gradients with others.

    ``halves``: forward passes are in bfloat16.

    Raises:
        UserError: it cannot be divided.
    """
    if share.size == 1:
        return model.to(share.device)
    if sharding == "full":
        _divide(model, share, halves=halves)
        return model
    # Buffers are equal on all workers already, and nothing changes them.
    return nn.parallel.DistributedDataParallel(model.to(share.device), forward_sync_buffers=False)


def _divide(model: nn.Module, share: Share, *, halves: bool) -> None:
    """Divide the weights of each layer, then those outside of layers, in place.

    A layer moves to the device when it is divided, so that no device ever holds all of the model. With
    ``halves`` layers are put together in bfloat16, which halves what is sent and kept; parts, and sums of
    gradients, keep their precision.
    """
    mesh = init_device_mesh(share.device.type, (share.size,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if halves else MixedPrecisionPolicy()
    root = _root(model)
    for module in [*_layers(root), root]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise UserError(
                f"resources.sharding: full: {name} lies outside of the model that is divided: give none"
            )


def _root(model: nn.Module) -> nn.Module:
    """The model of `transformers` inside: a method's wrapper calls its `generate` past everything else."""
    from transformers import PreTrainedModel

    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)


def _layers(root: nn.Module) -> list[nn.Module]:
    """What the model's authors say is one piece, inner ones first."""
    names = {name for module in root.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    found = [module for module in root.modules() if type(module).__name__ in names and module is not root]
    return found[::-1]


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are divided."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def looking(model: nn.Module) -> Iterator[None]:
    """Forward passes without a backward pass: the model in evaluation, and as it was at the end.

    Not in inference mode: what is made in it, and kept by layers or by FSDP2, training could not use.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the outermost waits for a backward pass


def filled(mine: Sequence[T], blank: T, share: Share) -> list[T]:
    """As many as the worker with the most has."""
    most = torch.tensor(len(mine), device=share.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return [*mine, *[blank] * (int(most) - len(mine))]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a divided tensor, on every worker; all must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(model: nn.Module, share: Share, *, trained_only: bool) -> None:
    """Put the whole weights into the first worker's ``model``, in host memory, one after the other.

    All workers must call it; nobody can train the model afterwards.
    """
    gathered: dict[nn.Parameter, nn.Parameter] = {}  # tied weights once
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if trained_only and not parameter.requires_grad:
                continue
            if parameter not in gathered:
                full = whole(parameter.detach())
                kept = nn.Parameter(full.cpu(), parameter.requires_grad) if share.rank == 0 else parameter
                gathered[parameter] = kept
            setattr(module, name, gathered[parameter])
