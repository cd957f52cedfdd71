"""Who is next: a pure rule over the queue, the cluster and the quotas.

Between teams, the one that holds the least of the cluster for its share goes first; among equals the one
that used the fewest GPU-hours for its share, then the one whose next job waits longest. Inside a team,
priority and then age decide: a priority takes nothing from other teams. A job that does not fit lets others
that do pass it, for at most `patience_s`; from then on it is first, and what it needs is kept free for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from seatrial.config.jobs import JobsConfig, TeamSection
from seatrial.store.job import Attempt, Job, Need

DAY_S = 86400.0
TINY = 1e-9


@dataclass(frozen=True)
class Room:
    """A part of the cluster, on whichever nodes."""

    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Room) -> Room:
        return Room(self.cpus + other.cpus, self.gpus + other.gpus)

    def __or__(self, other: Room) -> Room:
        """The larger part of each."""
        return Room(max(self.cpus, other.cpus), max(self.gpus, other.gpus))


@dataclass(frozen=True)
class Node:
    """One machine of the cluster; ``cpus`` and ``gpus`` are what it has, the others what nobody uses now."""

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float

    def take(self, cpus: float, gpus: float) -> Node:
        """The same with less free."""
        return replace(self, free_cpus=self.free_cpus - cpus, free_gpus=self.free_gpus - gpus)

    def holds(self, cpus: float, gpus: float) -> int:
        """Workers of this size that its free room holds."""
        counts = [
            int((free + TINY) // each)
            for free, each in ((self.free_cpus, cpus), (self.free_gpus, gpus))
            if each > 0
        ]
        return max(0, min(counts)) if counts else 10**6

    def empty(self) -> Node:
        """The same with nothing on it."""
        return replace(self, free_cpus=self.cpus, free_gpus=self.gpus)


@dataclass(frozen=True)
class Cluster:
    """The nodes that are up."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Logical CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def used(self) -> Room:
        """What anybody uses of them."""
        cpus = sum(node.cpus - node.free_cpus for node in self.nodes)
        return Room(cpus, sum(node.gpus - node.free_gpus for node in self.nodes))


@dataclass(frozen=True)
class Order:
    """``start`` in this order; ``waits`` says of each other job what it waits for."""

    start: tuple[Job, ...] = ()
    waits: Mapping[str, str] = field(default_factory=dict)
    impossible: frozenset[str] = frozenset()
    """Jobs that the cluster can never hold."""
    passed: frozenset[str] = frozenset()
    """Jobs whose turn it was, that did not fit, and that others passed."""


def needs(need: Need, cluster: Cluster, config: JobsConfig) -> Need:
    """With the GPUs that `device: auto` comes to on this cluster, and no more workers than it has GPUs."""
    present = max(cluster.gpus, config.grows_to.gpus if config.grows_to else 0.0)
    if need.is_auto:
        need = replace(need, is_auto=False, gpus=1.0 if present >= need.workers else 0.0)
    if need.most is not None and need.gpus > 0:
        held = int(present / need.gpus)
        need = replace(need, most=max(min(need.most, held), need.workers))
    return need


def next_jobs(
    waiting: Sequence[Job],
    running: Sequence[Job],
    cluster: Cluster,
    attempts: Sequence[Attempt],
    config: JobsConfig,
    now: float,
    placed: Mapping[str, Room],
) -> Order:
    """The jobs to start now. ``waiting`` are those that nothing but room and quota holds back.

    ``attempts`` are those of the quota's window and those that run. ``placed`` says by submission ids what
    running attempts have of what the cluster shows as used.
    """
    return _Round(running, cluster, attempts, config, now, placed).run(waiting)


def used_gpu_hours(attempts: Sequence[Attempt], config: JobsConfig, now: float) -> dict[str, float]:
    """Team → GPU-hours in the quota's window."""
    since = now - config.window_days * DAY_S
    used: dict[str, float] = {}
    for attempt in attempts:
        used[attempt.team] = used.get(attempt.team, 0.0) + attempt.gpu_hours(since=since, now=now)
    return used


class _Round:
    """One pass over the queue."""

    def __init__(
        self,
        running: Sequence[Job],
        cluster: Cluster,
        attempts: Sequence[Attempt],
        config: JobsConfig,
        now: float,
        placed: Mapping[str, Room],
    ) -> None:
        self._cluster, self._config, self._now = cluster, config, now
        self._used = used_gpu_hours(attempts, config, now)
        self._bound = dict(self._used)  # with what running jobs may still use
        started = {(attempt.job_id, attempt.number): attempt.started_at for attempt in attempts}
        claims = [needs(job.need, cluster, config) for job in running]
        for job, claim in zip(running, claims, strict=True):
            self._promise(job, claim, now - started.get((job.id, job.attempt), now))
        self._claimed_cpus = sum(claim.workers * claim.cpus for claim in claims)
        self._claimed_gpus = sum(claim.workers * claim.gpus for claim in claims)
        late = [
            _late(claim, placed.get(job.ray_id, Room())) for job, claim in zip(running, claims, strict=True)
        ]
        # Where Ray shows less as used than our own jobs claim, what they were given is not in its report.
        hidden = Room(self._claimed_cpus - cluster.used.cpus, self._claimed_gpus - cluster.used.gpus)
        self._nodes = _unclaimed(cluster, sum(late, Room()) | hidden)
        self._held: dict[str, float] = {}
        for job, claim in zip(running, claims, strict=True):
            self._hold(job, claim)
        self._places = None if config.max_running is None else config.max_running - len(running)
        self._kept: set[str] = set()  # resources that a job has waited for too long

    def run(self, waiting: Sequence[Job]) -> Order:
        """Take the jobs in turn and start what fits."""
        start: list[Job] = []
        waits: dict[str, str] = {}
        impossible: set[str] = set()
        blocked: set[str] = set()
        passed: set[str] = set()
        for job in self._turns(waiting):
            need = needs(job.need, self._cluster, self._config)
            if (never := self._never(need)) is not None:
                waits[job.id] = never
                impossible.add(job.id)
            elif (why := self._forbidden(job, need)) is not None:
                waits[job.id] = why
            elif (why := self._no_room(job, need)) is not None:
                waits[job.id] = why
                blocked.add(job.id)
            else:
                self._start(job, need)
                start.append(job)
                passed |= blocked
        return Order(tuple(start), waits, frozenset(impossible), frozenset(passed))

    def _turns(self, waiting: Sequence[Job]) -> Iterator[Job]:
        """Those that were passed for too long, then team by team; each start changes whose turn is next."""
        overdue = [job for job in waiting if self._is_overdue(job)]
        yield from sorted(overdue, key=lambda job: (job.passed_at or 0.0, job.id))
        lines = self._lines([job for job in waiting if not self._is_overdue(job)])
        while lines:
            team = min(lines, key=lambda name: self._turn(name, lines[name][0]))
            yield lines[team].pop(0)
            if not lines[team]:
                del lines[team]

    def _is_overdue(self, job: Job) -> bool:
        return job.passed_at is not None and self._now - job.passed_at >= self._config.patience_s

    def _lines(self, waiting: Sequence[Job]) -> dict[str, list[Job]]:
        lines: dict[str, list[Job]] = {}
        for job in sorted(waiting, key=lambda job: (-job.priority, job.submitted_at, job.id)):
            lines.setdefault(job.team, []).append(job)
        return lines

    def _turn(self, team: str, head: Job) -> tuple[float, float, float, str]:
        share = self._team(team).share
        used = self._used.get(team, 0.0) / share
        return self._held.get(team, 0.0) / share, used, head.submitted_at, head.id

    def _team(self, name: str) -> TeamSection:
        return self._config.teams.get(name, TeamSection())

    def _never(self, need: Need) -> str | None:
        """Why the cluster can never hold it; None when it can."""
        grown = self._config.grows_to
        if grown is not None:
            fits = need.workers * need.cpus <= grown.cpus and need.workers * need.gpus <= grown.gpus
        else:
            fits = _place(need, [node.empty() for node in self._cluster.nodes]) is not None
        if fits:
            return None
        cpus, gpus = (grown.cpus, grown.gpus) if grown else (self._cluster.cpus, self._cluster.gpus)
        count = "as it may grow" if grown else _nodes(len(self._cluster.nodes))
        return f"unschedulable: asks for {shown(need)}; the cluster has {cpus:g} CPU, {gpus:g} GPU ({count})"

    def _forbidden(self, job: Job, need: Need) -> str | None:
        teams = self._config.teams
        if teams and job.team not in teams:
            return f"team {job.team}: not in jobs.yaml (teams: {', '.join(sorted(teams))})"
        limit = self._team(job.team).gpu_hours
        gpus = need.counted_gpus
        if limit is not None and gpus > 0:
            wanted = gpus * (job.time_limit_s or 0.0) / 3600
            bound = self._bound.get(job.team, 0.0)
            if bound >= limit or bound + wanted > limit + TINY:
                may = f" and may use {wanted:.1f}" if wanted else ""
                return (
                    f"quota: team {job.team} has used or promised {bound:.1f} of {limit:g} GPU-hours "
                    f"in {self._config.window_days:g} days{may}"
                )
        if self._places is not None and self._places <= 0:
            return f"place: {self._config.max_running} jobs run (max_running)"
        return None

    def _no_room(self, job: Job, need: Need) -> str | None:
        kept = self._kept & _kinds(need)
        if kept:
            return f"room: {', '.join(sorted(kept))} is kept for a job that has waited longer"
        if self._fits(need):
            return None
        if self._is_overdue(job):
            self._kept |= _kinds(need)
        return f"room: asks for {shown(need)}"

    def _fits(self, need: Need) -> bool:
        grown = self._config.grows_to
        if grown is not None:
            return (
                self._claimed_cpus + need.workers * need.cpus <= grown.cpus + TINY
                and self._claimed_gpus + need.workers * need.gpus <= grown.gpus + TINY
            )
        return _place(need, self._nodes) is not None

    def _start(self, job: Job, need: Need) -> None:
        self._nodes = _place(need, self._nodes) or self._nodes
        self._claimed_cpus += need.workers * need.cpus
        self._claimed_gpus += need.workers * need.gpus
        self._hold(job, need)
        self._promise(job, need, 0.0)
        if self._places is not None:
            self._places -= 1

    def _hold(self, job: Job, need: Need) -> None:
        """Add to the team's part of the cluster: the largest of its parts of CPUs and of GPUs (Ghodsi et al.
        2011, Dominant Resource Fairness)."""
        grown = self._config.grows_to
        cpus = max(self._cluster.cpus, grown.cpus if grown else 0.0)
        gpus = max(self._cluster.gpus, grown.gpus if grown else 0.0)
        parts = [need.workers * need.cpus / cpus if cpus else 0.0]
        parts.append(need.workers * need.gpus / gpus if gpus else 0.0)
        self._held[job.team] = self._held.get(job.team, 0.0) + max(parts)

    def _promise(self, job: Job, need: Need, ran_s: float) -> None:
        """Count what a job with a time limit may still use."""
        left_s = max(0.0, (job.time_limit_s or 0.0) - ran_s)
        hours = need.counted_gpus * left_s / 3600
        self._bound[job.team] = self._bound.get(job.team, 0.0) + hours


def _late(claim: Need, has: Room) -> Room:
    """What a running job has claimed and not taken yet; one that grew has taken more."""
    return Room(claim.workers * claim.cpus - has.cpus, claim.workers * claim.gpus - has.gpus) | Room()


def _unclaimed(cluster: Cluster, late: Room) -> list[Node]:
    """The nodes less what our jobs will take; workers start long after their driver."""
    late_cpus, late_gpus = late.cpus, late.gpus
    found = []
    for node in sorted(cluster.nodes, key=lambda node: (-node.free_gpus, -node.free_cpus)):
        less_cpus, less_gpus = min(node.free_cpus, late_cpus), min(node.free_gpus, late_gpus)
        late_cpus, late_gpus = late_cpus - less_cpus, late_gpus - less_gpus
        found.append(node.take(less_cpus, less_gpus))
    return found


def _place(need: Need, nodes: Sequence[Node]) -> list[Node] | None:
    """The nodes with the workers on them, fullest first; None when they do not fit."""
    left, found = need.workers, []
    for node in sorted(nodes, key=lambda node: (node.free_gpus, node.free_cpus)):
        here = min(left, node.holds(need.cpus, need.gpus))
        left -= here
        found.append(node.take(here * need.cpus, here * need.gpus))
    return None if left > 0 else found


def _kinds(need: Need) -> set[str]:
    return {name for name, each in (("CPU", need.cpus), ("GPU", need.gpus)) if each > 0}


def shown(need: Need) -> str:
    """`4 x (2 CPU, 1 GPU)`."""
    gpus = f", {need.gpus:g} GPU" if need.gpus else ""
    return f"{need.workers} x ({need.cpus:g} CPU{gpus})"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
