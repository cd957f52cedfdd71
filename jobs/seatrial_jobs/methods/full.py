"""Every weight of the language model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seatrial_jobs.methods.text import text_modules

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from seatrial.registry.manifest import BaseRef, Kind


class Full:
    """Fine-tuning and pretraining of all weights."""

    kind: Kind = "full"
    rank: int | None = None
    trains_base = True

    def __init__(self, section: Any) -> None:
        del section  # it has no settings

    def prepare(self, model: PreTrainedModel) -> nn.Module:
        """The model itself, with every weight that text reaches trainable."""
        model.requires_grad_(False)
        for module in text_modules(model):
            module.requires_grad_(True)
        return model

    def save(self, model: nn.Module, folder: Path, base: BaseRef | None) -> None:
        """Whole weights and configuration, as `transformers` writes them."""
        model.save_pretrained(folder)  # type: ignore[operator]
