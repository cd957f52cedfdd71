"""The part of a model that text passes through.

Models that also see or hear (Gemma 3, for example) are loaded whole. What they see with would get no gradient
from text: data-parallel workers would wait for it, and weight decay alone would change it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def text_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder and the output layer of a model with other parts; of a language model, itself."""
    if model.config.get_text_config(decoder=True) is model.config:
        return [model]
    output = model.get_output_embeddings()
    return [model.get_decoder(), *([output] if output is not None else [])]


def outside_text(model: PreTrainedModel) -> str | None:
    """A pattern for the names of all layers outside :func:`text_modules`; ``None`` when there are none."""
    inside = text_modules(model)
    names = [re.escape(name) for name, module in model.named_modules() if any(module is m for m in inside)]
    return None if "" in names else rf"(?!(?:{'|'.join(names)})(?:\.|$)).*"
