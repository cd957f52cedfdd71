"""A job as its workers see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial.registry.manifest import BaseRef
from seatrial_jobs.evaluate import Question
from seatrial_jobs.storage import Storage


class HopelessError(Exception):
    """Training cannot go on, on any worker, however often it is tried."""


@dataclass(frozen=True)
class Spec:
    """What the driver tells its workers."""

    recipe: TrainRecipe | PretrainRecipe
    steps: int
    data: Any
    """Object reference to (train, heldout): :class:`Packed` and :class:`Packed` or None."""
    questions: list[Question]
    base_path: str | None
    base: BaseRef | None
    tokenizer_files: dict[str, str] | None
    storage: Storage
    """The job's own place."""
    driver: str
    run_id: str
    mlflow_uri: str
    data_digest: str
    code_digest: str
    export: bool = True
    """Whether a version is written when the gates pass; of a search's trials only the best becomes one."""
    tidies: bool = True
    """Whether the workers delete old checkpoints; in a population others may still copy them."""

    @property
    def method_name(self) -> str:
        """What the manifest says made the weights."""
        return self.recipe.method.type if isinstance(self.recipe, TrainRecipe) else "pretrain"
