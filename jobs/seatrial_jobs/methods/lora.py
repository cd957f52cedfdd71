"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W x + (alpha / r) B A x, with W frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.config.method import LoraMethod
from seatrial.errors import UserError
from seatrial_jobs.methods.text import outside_text

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from seatrial.registry.manifest import BaseRef, Kind


class Lora:
    """Adapters through PEFT: A (r, in) starts random, B (out, r) at zero, so training starts at the base."""

    kind: Kind = "adapter"
    trains_base = False

    def __init__(self, section: LoraMethod) -> None:
        self.section = section
        self.rank: int | None = section.rank

    def prepare(self, model: PreTrainedModel) -> nn.Module:
        """The model with adapters on the linear layers that text reaches; only those are trainable.

        Raises:
            UserError: none of the named layers is in the model.
        """
        from peft import LoraConfig, get_peft_model

        targets = self.section.targets
        config = LoraConfig(
            r=self.section.rank,
            lora_alpha=self.section.alpha,
            lora_dropout=self.section.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            exclude_modules=outside_text(model),
            task_type="CAUSAL_LM",
        )
        try:
            wrapped: nn.Module = get_peft_model(model, config)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"method.targets: {targets}: {reason}: name layers of the base") from error
        return wrapped

    def save(self, model: nn.Module, folder: Path, base: BaseRef | None) -> None:
        """`adapter_model.safetensors` and `adapter_config.json`, which names the base."""
        model.save_pretrained(folder)  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)  # an empty model card; a version holds no such file
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))

        config["base_model_name_or_path"] = base.ref if base else None
        if isinstance(config["target_modules"], list):  # a set in PEFT: without an order of its own
            config["target_modules"].sort()
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
