"""How long, how fast and on what a job runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from seatrial.config.section import PositiveInt, Section, Share, wrong


class SpikesSection(Section):
    """What to do about a step whose loss or gradient stands out, before its update is applied."""

    action: Literal["skip", "rollback", "lower_lr", "stop"] = "skip"
    """Leave the update out; with it all since the last checkpoint; lower the rate besides; or end the job."""
    threshold: Annotated[float, Field(gt=0)] = 10.0
    """Distance from the median, in robust standard deviations (1.4826 MAD), from which on it is a spike."""
    window: Annotated[int, Field(ge=8, le=4096)] = 64
    """Latest ordinary steps that a step is compared with; half of them must have been seen first."""
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What `lower_lr` multiplies the rate by, each time."""
    max_events: PositiveInt = 10
    """Spikes after which the job ends."""


class RunSection(Section):
    """The training run: length, batches, schedule, checkpoints."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seeds initialisation, data order and dropout."""
    steps: PositiveInt | None = None
    """Optimizer steps; give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Passes over the packed data; give this or `steps`."""
    seq_tokens: Annotated[int, Field(ge=16)] = 512
    """Tokens of one packed row."""
    batch_rows: PositiveInt = 8
    """Packed rows per optimizer step, over all workers and accumulation steps."""
    accumulate: PositiveInt = 1
    """Forward passes per optimizer step; divides a worker's share of `batch_rows`."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak of the schedule."""
    warmup_share: Share = 0.1
    """Share of the steps in which the rate rises linearly; it falls linearly to zero afterwards."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled decay, on matrices only."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a step's gradient."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; `auto` is bfloat16 on GPUs that have it and float32 on CPUs."""
    compile: bool = False
    """Compile the passes with torch.compile: the first steps take minutes, later ones are faster."""
    recompute: bool = False
    """Keep no activations of the layers but compute them again for the gradient: less memory, more time."""
    loss_chunk_tokens: PositiveInt | None = None
    """Tokens whose loss is computed at once; without it all of a pass, which large vocabularies make dear."""
    evaluate_every: PositiveInt | None = None
    """Steps between two measurements of the held-out loss; the end is always measured."""
    checkpoint_every: PositiveInt | None = None
    """Steps between two checkpoints; the end is always kept."""
    checkpoint: Literal["async", "sync"] = "async"
    """Whether training goes on while a checkpoint is written and uploaded, or waits for it."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept in storage."""
    keep_best_checkpoints: Annotated[int, Field(ge=0)] = 1
    """Checkpoints kept besides, by the held-out loss measured at the same step."""
    spikes: SpikesSection | None = None
    """What to do about steps that stand out; without it, a loss that is no number ends the job."""
    storage: str = "runs/jobs"
    """Directory or `s3://bucket/prefix` that every worker can write to."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures that are survived before the job ends."""

    @model_validator(mode="after")
    def _one_length(self) -> RunSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        return self


class ResourcesSection(Section):
    """What the workers are given."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Training processes, or `[least, most]`: as many as the cluster has room for, with the same batches."""
    resize_every_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two looks whether there is room for more of `[least, most]` workers."""
    sharding: Literal["none", "full"] = "none"
    """`full` divides weights, gradients and optimizer among the workers; with `none` each has all of them."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` takes GPUs when the cluster has enough of them."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs reserved for a worker."""
    threads_per_worker: PositiveInt | None = None
    """Arithmetic threads of a CPU worker; without it the machine's cores are shared evenly."""

    @model_validator(mode="after")
    def _least_first(self) -> ResourcesSection:
        if self.min_workers > self.max_workers:
            raise wrong("workers", [self.min_workers, self.max_workers], "give the smaller number first")
        return self

    @property
    def min_workers(self) -> int:
        """What the job must have: it waits for so many, and a pass is as large as they need it to be."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """What the job takes when there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def shown_workers(self) -> str:
        """`2`, or `2 to 4`."""
        least, most = self.min_workers, self.max_workers
        return str(least) if least == most else f"{least} to {most}"


class GateSection(Section):
    """What the held-out split must show before a version is registered."""

    max_loss: Annotated[float, Field(gt=0)] | None = None
    """Largest mean loss per response token, in nats."""
    min_exact_match: Share | None = None
    """Smallest share of answers that equal the reference after normalisation."""
    min_rouge_l: Share | None = None
    """Smallest mean ROUGE-L F1."""
    sample_rows: PositiveInt = 100
    """Held-out prompts that are answered for exact match and ROUGE-L."""
    max_new_tokens: PositiveInt = 64
    """Longest answer, in tokens."""
