"""A share against its limit, at any look."""

from __future__ import annotations

import math

from scipy import special


def share_above_p(failures: float, total: int, limit: float) -> float:
    """Anytime-valid p-value of "the true share of failures is at most ``limit``".

    ``failures`` is the sum over ``total`` units of values in [0, 1]: each unit's share of failed requests.

    A uniform mixture over the shares above the limit against the limit itself (the method of mixtures:
    Robbins 1970; Howard et al., arXiv:1810.08240). The likelihood ratio is monotone in the share, so the
    mixture is a supermartingale for every share up to the limit, and Ville's inequality holds at every look.
    It is convex in each value, so a value between 0 and 1 gives at most what zeros and ones of its mean give.

    Raises:
        ValueError: counts that cannot be.
    """
    if not 0 <= failures <= total:
        raise ValueError(f"failures {failures} of {total}: give 0 <= failures <= total")
    if limit >= 1 or total == 0:
        return 1.0
    if limit <= 0:
        return 0.0 if failures else 1.0
    successes = total - failures
    upper = float(special.betaincc(failures + 1, successes + 1, limit))
    if upper == 0.0:  # underflow: the counts lie far below the limit
        return 1.0
    log_mixture = float(special.betaln(failures + 1, successes + 1)) + math.log(upper) - math.log1p(-limit)
    log_null = failures * math.log(limit) + successes * math.log1p(-limit)
    return math.exp(min(0.0, log_null - log_mixture))
