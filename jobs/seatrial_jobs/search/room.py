"""How many trials at a time: as many as the cluster's free resources hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

from seatrial.config.search import SearchSection
from seatrial.errors import UserError

ACTOR = {"memory": 1.0}
"""What the actor that watches a trial asks for: it computes nothing, and a part of a CPU would leave others
than whole ones to the workers."""


def room(free: Mapping[str, float], each: Mapping[str, float], limit: int | None) -> int:
    """Trials that ``free`` resources hold at a time, at least one, which then waits for them.

    What is free counts, not what the cluster has: placement groups of other jobs, and those that Ray has
    leaked (ray#54305), leave less.
    """
    held = (math.floor((free.get(name, 0.0) + 1e-9) / amount) for name, amount in each.items() if amount > 0)
    return max(min([*held, limit or math.inf]), 1)  # type: ignore[return-value]


def require_population(search: SearchSection, held: int) -> None:
    """Population-based training compares trials that run together.

    Raises:
        UserError: not all of them fit.
    """
    if search.least_at_a_time > held:
        raise UserError(
            f"search.trials: {search.count}: pbt trains all of them at once, and there is room for {held}: "
            "lower it, lower resources, or use a larger cluster"
        )
