"""What a job learns from."""

from __future__ import annotations

from pydantic import Field

from seatrial.config.section import Section, Share


class DataSection(Section):
    """Prompt and response pairs, or chat messages, in JSON or JSON Lines."""

    train: str = Field(min_length=1)
    """File of training examples."""
    heldout: str | None = None
    """File of examples that are only ever measured on; without it `heldout_share` of `train` is set aside."""
    heldout_share: Share = 0.05
    """Share of `train` set aside by a hash of each prompt when `heldout` is not given."""
    max_bad_rows: int = Field(default=0, ge=0)
    """Rows that may be unreadable before the job refuses to start; each one is reported."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use the first so many training rows only."""
