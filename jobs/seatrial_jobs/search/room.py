"""How many trials at a time: as many as the cluster's free resources hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from seatrial.config.jobs import JobsConfig
from seatrial.config.search import SearchSection
from seatrial.config.tune import TuneRecipe
from seatrial.errors import UserError
from seatrial_jobs.events import say

ACTOR = {"memory": 1.0}
"""What the actor that watches a trial asks for: it computes nothing, and a part of a CPU would leave others
than whole ones to the workers."""
WAIT_S = 120.0
"""Seconds that a population waits for room: workers of a job that has ended take some of them to go."""
LOOK_EVERY_S = 0.5

Resources = Mapping[str, float]


def room(free: Resources, each: Resources, limit: int | None) -> int:
    """Trials that ``free`` resources hold at a time, at least one, which then waits for them.

    What is free counts, not what the cluster has: placement groups of other jobs, and those that Ray has
    leaked (ray#54305), leave less.
    """
    held = (math.floor((free.get(name, 0.0) + 1e-9) / amount) for name, amount in each.items() if amount > 0)
    return max(min([*held, limit or math.inf]), 1)  # type: ignore[return-value]


def await_room(
    search: SearchSection,
    each: Resources,
    all_resources: Resources,
    look: Callable[[], Resources],
    *,
    grows_to: Resources | None = None,
    wait_s: float = WAIT_S,
) -> int:
    """Trials that fit at a time now, each with the resources ``each``.

    Population-based training compares trials that run together: room for all of them is waited for, if the
    cluster as a whole has it. ``look`` tells what is free. Of a cluster that an autoscaler ``grows_to`` more
    it is asked for instead, by starting them: nodes come for what waits in Ray alone.

    Raises:
        UserError: not all of a population fit, into the cluster or within ``wait_s`` into what is free.
    """
    limit, least = search.max_concurrent, search.least_at_a_time
    most = room(all_resources, each, limit)
    if grows_to is not None and most < least <= room(grows_to, each, limit):
        return least
    if most < least:
        raise _too_small(search, f"the cluster has room for {most}", "use a larger cluster")
    end = time.monotonic() + wait_s
    held = room(look(), each, limit)
    if held < least:
        say(f"waits for room: {held} of {least} trials fit into what other jobs leave free")
    while held < least:
        if time.monotonic() > end:
            cause = f"other jobs left room for {held} in {wait_s:g} s"
            raise _too_small(search, cause, "submit it through the queue, which waits")
        time.sleep(LOOK_EVERY_S)
        held = room(look(), each, limit)
    return held


def each_trial(recipe: TuneRecipe, most: Resources) -> Resources:
    """What a trial must have room for: ``most``, which is all the workers that it may come to have; in a
    population, which must start as a whole, the least of them, as the queue counts it."""
    if recipe.search.least_at_a_time == 1:
        return most
    share = recipe.resources.min_workers / recipe.resources.max_workers
    return {name: amount * share for name, amount in most.items()}


def grown(config: JobsConfig) -> Resources | None:
    """What an autoscaler may grow the cluster to, by the operator's file."""
    limits = config.grows_to
    return None if limits is None else {"CPU": limits.cpus, "GPU": limits.gpus}


def _too_small(search: SearchSection, cause: str, fix: str) -> UserError:
    return UserError(
        f"search.trials: {search.count}: pbt trains all of them at once, and {cause}: "
        f"lower it, lower resources, or {fix}"
    )
