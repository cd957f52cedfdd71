"""By which rules a trial's requests and outcomes become figures of its units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from seatrial.experiments.policy import MetricPolicy, TrialPolicy
from seatrial.experiments.trial import Trial

# Grows whenever the same rows would make other figures: what was kept is then made anew.
FORMAT = 3


@dataclass(frozen=True)
class Rules:
    """``metrics`` begins with the one that decides; ``prices`` are for a million tokens."""

    metrics: tuple[MetricPolicy, ...]
    attribution_s: float | None = None
    prices: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: Trial) -> Rules:
        """The rules of the trial's own policy."""
        policy = TrialPolicy.from_json(trial.policy)
        return cls(policy.metrics, policy.attribution_s, policy.prices)

    @property
    def digest(self) -> str:
        """Tells figures of these rules from those of others."""
        text = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
