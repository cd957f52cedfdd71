"""How much of the traffic a trial takes as it goes on.

Only the coverage grows, in which all arms share alike: nobody changes arm, and the arms keep their ratio, so
the sample-ratio test holds throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seatrial.experiments.evidence import Evidence

# Exposed units that every challenger must have before the next step: without evidence nothing grows.
FEWEST_UNITS = 20


def coverages(policy: Mapping[str, Any]) -> tuple[float, ...]:
    """The coverage of each step, growing. ``policy`` is a `TrialSection` as JSON.

    A step is the challengers' share of all traffic; of the units that take part, that share is
    `challenger_share`, so the coverage is the step over it.
    """
    most, share = policy["coverage"], policy["challenger_share"]
    steps = (policy.get("ramp") or {}).get("steps") or ()
    return tuple(sorted({min(most, step / share) for step in steps})) or (most,)


def next_coverage(
    policy: Mapping[str, Any], coverage: float, ramped_at: float, evidence: Evidence, now: float
) -> float | None:
    """The coverage to go on with now; None to stay at ``coverage``, held since ``ramped_at``."""
    larger = [each for each in coverages(policy) if each > coverage]
    if not larger or now - ramped_at < (policy.get("ramp") or {}).get("hold_s", 0.0):
        return None
    is_seen = all(arm.exposed_units >= FEWEST_UNITS for arm in evidence.arms)
    return larger[0] if is_seen else None
