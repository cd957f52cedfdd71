"""The loop: observe, plan, act, again. It keeps nothing in memory that a restart would need."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from seatrial.config.addresses import Addresses
from seatrial.controller.leadership import LEASE_S, Leadership
from seatrial.controller.trouble import Log, Rests, Trouble
from seatrial.errors import SeatrialError
from seatrial.experiments.evidence import Evidence
from seatrial.reconcile.actions import Action, AddLook, PutState
from seatrial.reconcile.apply import Applier
from seatrial.reconcile.observed import World, observe
from seatrial.reconcile.plan import plan
from seatrial.reconcile.serve import ServeApi
from seatrial.reconcile.world import Desired, DesiredService
from seatrial.store import Store

log = logging.getLogger("seatrial.controller")

QUICK_S = 0.25  # until the next pass while things are changing
# How long after the last change things count as changing: replicas load and report, and some write follows.
FOLLOW_S = 10.0
FORGET_REPLICA_S = 600.0
TIDY_EVERY_S = 300.0
STALLED_S = 300.0
_BOOKKEEPING = (PutState, AddLook)


@dataclass(frozen=True)
class Report:
    """What the last pass came to, and what the last one that saw everything saw.

    ``is_well`` says that the loop and its store work; other parts may be away, as ``errors`` then says with
    one line for each part or service that did not go on. ``evidence`` is of trials that nobody has decided.
    """

    passes: int = 0
    at: float | None = None
    is_well: bool = False
    leader: str | None = None
    errors: tuple[str, ...] = ()
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)

    def is_well_at(self, now: float) -> bool:
        """Whether the loop works, and still goes on."""
        return self.is_well and self.at is not None and now - self.at <= STALLED_S


class Controller:
    """Reconciles every service of one store with one MLflow server and one Ray cluster.

    Of several on one store, the one that holds the store's lease acts; ``holder`` is this one's name in it.
    """

    def __init__(
        self,
        store: Store,
        serve: ServeApi,
        mlflow_uri: str,
        *,
        clock: Callable[[], float] = time.time,
        applier: Applier | None = None,
        holder: str | None = None,
    ) -> None:
        self.store = store
        self.clock = clock
        self.report = Report()
        self.leadership = Leadership(store, clock=clock, holder=holder)
        self._serve = serve
        self.mlflow_uri = mlflow_uri
        self._applier = applier or Applier(store, serve, mlflow_uri)
        self._rests = Rests()
        self._log = Log()
        self._woken = threading.Event()
        self._is_migrated = False
        self._began_at = 0.0
        self._tidied_at = 0.0

    @classmethod
    def of(cls, addresses: Addresses) -> Controller:
        """The controller of the stack that ``addresses`` names."""
        return cls(Store(addresses.store_url), ServeApi.of(addresses), addresses.mlflow_uri)

    def run(self, stop: threading.Event, *, poll_s: float) -> None:
        """Pass after pass until ``stop`` is set; no failure ends it. :meth:`wake` makes it look at once."""
        quick_until_s = 0.0
        while not stop.is_set():
            self._woken.clear()
            if self.one_pass():
                quick_until_s = time.monotonic() + FOLLOW_S
            is_quick = time.monotonic() < quick_until_s
            self._woken.wait(min(QUICK_S, poll_s) if is_quick else poll_s)

    def wake(self) -> None:
        """Begin the next pass now, or right after the present one; safe from any thread."""
        self._woken.set()

    def keep_lease(self, stop: threading.Event) -> None:
        """Renew the lease beside the loop, however long one of its side effects takes, unless it hangs."""
        while not stop.wait(LEASE_S / 6):
            if self.clock() - self._began_at <= STALLED_S:
                with suppress(Exception):  # the next pass meets the same and reports it
                    self.leadership.renew()

    def one_pass(self) -> bool:
        """Observe, plan and act once; whether something was done that a next pass should follow up soon."""
        now = self._began_at = self.clock()
        seen = replace(self.report, passes=self.report.passes + 1, at=now, is_well=False, leader=None)
        try:
            self._prepare(now)
            seen = replace(seen, leader=self.leadership.leader())
            if seen.leader != self.leadership.holder:
                troubles = [Trouble.of(StandingByError(f"standing by: {seen.leader} acts"))]
                self._finish(replace(seen, is_well=True), troubles)
                return False
            world = observe(self.store, self._serve, self.mlflow_uri, now)
        except Exception as error:  # nothing may end the loop; it is logged whole
            is_well = seen.leader is not None and isinstance(error, SeatrialError)
            self._finish(replace(seen, is_well=is_well), [Trouble.of(error)])
            return False
        is_busy, troubles = self._act(world, now)
        self._finish(_seen(world, replace(seen, is_well=True)), troubles)
        return is_busy

    def _prepare(self, now: float) -> None:
        if not self._is_migrated:
            self.store.migrate()
            self._is_migrated = True
        if now - self._tidied_at > TIDY_EVERY_S:
            self.store.forget_replicas(before=now - FORGET_REPLICA_S)
            self.store.forget_leases(before=now - FORGET_REPLICA_S)
            self._tidied_at = now

    def _act(self, world: World, now: float) -> tuple[bool, list[Trouble]]:
        """Act for every service; one that fails rests for a while and keeps no other waiting."""
        is_busy = False
        troubles = _troubles(world)
        for service in world.desired.services:
            trouble = self._rests.of(service, now)
            if trouble is None:
                was_busy, trouble = self._tend(service, world, now)
                is_busy |= was_busy
                if trouble is None:
                    self._rests.end(service)
                else:
                    self._rests.begin(service, trouble, now)
            if trouble is not None:
                troubles.append(trouble)
        return is_busy, troubles

    def _tend(self, service: DesiredService, world: World, now: float) -> tuple[bool, Trouble | None]:
        """Plan one service and apply in order; what fails stops it, and a later pass sees where it stands."""
        is_busy = False
        doing = "plan"
        try:
            for action in plan(Desired((service,)), world.observed, now):
                doing = type(action).__name__
                if not self.leadership.is_held():
                    return False, None
                self._applier.apply(action)
                log.log(_level(action), "%s: %s", service.name, _summary(action))
                is_busy |= not isinstance(action, _BOOKKEEPING)
        except Exception as error:
            return False, Trouble.of(error, service.name, doing)
        return is_busy, None

    def _finish(self, report: Report, troubles: Sequence[Trouble]) -> None:
        self.report = replace(report, errors=tuple(trouble.text for trouble in troubles))
        self._log.say(troubles, self.clock())


class StandingByError(SeatrialError):
    """Another controller acts on this store."""


def _troubles(world: World) -> list[Trouble]:
    """What could not be read, said once of a registry that is away."""
    of_all = [] if world.away is None else [Trouble.of(world.away)]
    each = [(name, error) for name, error in world.problems.items() if error is not world.away]
    return [*of_all, *(Trouble.of(error, name) for name, error in each)]


def _seen(world: World, report: Report) -> Report:
    """The report with what a pass saw; a service that could not be read is still as it was seen last."""
    unread = {name: report.aliases[name] for name in world.problems if name in report.aliases}
    aliases = {service.name: service.aliases for service in world.desired.services if service.is_read}
    counted = {
        each.trial.id: each.evidence
        for each in world.observed.services.values()
        if each.trial is not None and each.evidence is not None
    }
    kept = report.evidence if world.problems else {}
    return replace(report, aliases={**unread, **aliases}, evidence={**kept, **counted})


def _level(action: Action) -> int:
    return logging.DEBUG if isinstance(action, _BOOKKEEPING) else logging.INFO


def _summary(action: Action) -> str:
    name = type(action).__name__
    shown = {key: getattr(action, key, None) for key in ("alias", "version", "key", "value", "step")}
    details = ", ".join(f"{key}={value}" for key, value in shown.items() if value is not None)
    return f"{name}({details})" if details else name
