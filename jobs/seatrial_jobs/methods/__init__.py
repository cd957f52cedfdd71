"""Training methods: which weights of a model are trained, and what is saved of them.

A method is a class with the signature of :class:`Method`, built from its section of the recipe, and one line
in :data:`TABLE`. A package outside Seatrial adds one through the entry point group :data:`GROUP`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from seatrial.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from seatrial.registry.manifest import BaseRef, Kind

GROUP = "seatrial.methods"
TABLE = {
    "full": "seatrial_jobs.methods.full:Full",
    "lora": "seatrial_jobs.methods.lora:Lora",
}


class Method(Protocol):
    """One way to train a model."""

    kind: Kind
    """`full` for whole models, `adapter` for weights that need their base."""
    rank: int | None
    """Rank of an adapter."""
    trains_base: bool
    """Whether the base's own weights change; those are then kept in float32."""

    def __init__(self, section: Any) -> None:
        """Take the recipe's `method` section."""

    def prepare(self, model: PreTrainedModel) -> nn.Module:
        """The module to train; exactly its parameters with `requires_grad` change."""

    def save(self, model: nn.Module, folder: Path, base: BaseRef | None) -> None:
        """Write the trained weights into ``folder`` as safetensors and JSON."""


def build(section: Any) -> Method:
    """The method that a recipe's `method` section asks for.

    Raises:
        UserError: no such method, or its package cannot be imported.
    """
    made: Method = _find(section.type)(section)
    return made


def _find(name: str) -> Any:
    if name in TABLE:
        module, _, attribute = TABLE[name].partition(":")
        return getattr(import_module(module), attribute)
    outside = {point.name: point for point in entry_points(group=GROUP)}
    if name not in outside:
        known = ", ".join(sorted({*TABLE, *outside}))
        raise UserError(f"method.type: {name!r}: no such method: use one of {known}")
    try:
        return outside[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"method.type: {name!r}: {outside[name].value} not importable ({error}): reinstall it"
        ) from error
