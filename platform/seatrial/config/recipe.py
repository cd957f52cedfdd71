"""The two recipes: fine-tuning a model, and making a small one from nothing."""

from __future__ import annotations

from pydantic import Field, model_validator

from seatrial.config.data import DataSection
from seatrial.config.method import Method
from seatrial.config.model import ArchitectureSection, ModelSection, TokenizerSection
from seatrial.config.run import GateSection, ResourcesSection, RunSection
from seatrial.config.section import Section, Slug, wrong

DEVICE = "SEATRIAL_DEVICE"
"""The variable by which the queue tells a job's driver what `device: auto` is: gpu or cpu."""


class Recipe(Section):
    """What every job has: a name, data, a run, resources."""

    name: Slug
    """Name of the job; with the data's and the recipe's digests it is the job's identity."""
    data: DataSection
    """What it learns from."""
    run: RunSection
    """How it is trained."""
    resources: ResourcesSection = ResourcesSection()
    """What the workers are given."""
    gate: GateSection = GateSection()
    """What must hold before the result is registered."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Recipe:
        rows, workers = self.run.batch_rows, self.resources
        per_worker = workers.min_workers * self.run.accumulate
        if rows % per_worker:
            raise wrong(
                "run.batch_rows",
                rows,
                f"must be a multiple of resources.workers x run.accumulate ({per_worker})",
            )
        if rows < workers.max_workers:
            most = f"resources.workers ({workers.max_workers})"
            raise wrong("run.batch_rows", rows, f"must give each of {most} a row")
        return self


class TrainRecipe(Recipe):
    """`python -m seatrial_jobs.train`: fine-tune a model and register the version."""

    service: Slug
    """Registered model that receives the version."""
    model: ModelSection
    """Where it starts."""
    method: Method
    """How the weights are changed."""


class PretrainRecipe(Recipe):
    """`python -m seatrial_jobs.pretrain`: make a tokenizer and a small Llama, and register it as a base."""

    register_as: Slug
    """Registered model that receives the base."""
    tokenizer: TokenizerSection = Field(default=TokenizerSection())
    """The tokenizer that is trained first."""
    architecture: ArchitectureSection = Field(default=ArchitectureSection())
    """Shape of the model."""
