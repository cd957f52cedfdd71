"""Are the arms as large as the split says? A test that may be looked at continuously.

The sequential multinomial test of Lindon and Malek, "Anytime-valid inference for multinomial count data"
(NeurIPS 2022, arXiv:2011.03567), equation 4: the Bayes factor of a Dirichlet alternative against the planned
shares is a martingale under them, so by Ville's inequality 1 / BF is a p-value at every look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# How tightly the alternatives sit around the planned shares. The mean of Bayes factors is a Bayes factor:
# the loose one sees a gross fault in tens of units, the tight ones a slight fault in many thousands.
CONCENTRATIONS = (10.0, 1_000.0, 100_000.0)


def sample_ratio_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Anytime-valid p-value of ``counts`` units in arms whose planned ``shares`` sum to 1.

    Raises:
        ValueError: lengths differ, a count is negative, or a share is not positive.
    """
    if len(counts) != len(shares) or any(c < 0 for c in counts) or any(s <= 0 for s in shares):
        raise ValueError(
            f"counts {list(counts)}, shares {list(shares)}: give a positive share for each count"
        )
    logs = [_log_bayes_factor(counts, shares, concentration) for concentration in CONCENTRATIONS]
    largest = max(logs)
    log_mean = largest + math.log(math.fsum(math.exp(each - largest) for each in logs) / len(logs))
    return math.exp(min(0.0, -log_mean))


def _log_bayes_factor(counts: Sequence[int], shares: Sequence[float], concentration: float) -> float:
    """Log of P(counts | Dirichlet(concentration x shares)) / P(counts | shares)."""
    total = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = concentration * share
        total += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return total
