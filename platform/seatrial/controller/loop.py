"""The loop: observe, plan, act, again. It keeps nothing in memory that a restart would need."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError, SeatrialError
from seatrial.reconcile.actions import Action, AddLook, PutState
from seatrial.reconcile.apply import Applier
from seatrial.reconcile.observed import World, observe
from seatrial.reconcile.plan import plan
from seatrial.reconcile.serve import ServeApi
from seatrial.store import Store

log = logging.getLogger("seatrial.controller")

QUICK_S = 0.25  # until the next pass while things are changing
FORGET_REPLICA_S = 600.0
TIDY_EVERY_S = 300.0
REPEAT_LOG_S = 60.0
_BOOKKEEPING = (PutState, AddLook)


@dataclass(frozen=True)
class Report:
    """What the last pass came to. ``errors`` has one line for each part or service that did not go on."""

    passes: int = 0
    at: float | None = None
    errors: tuple[str, ...] = ()
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Controller:
    """Reconciles every service of one store with one MLflow server and one Ray cluster."""

    def __init__(
        self,
        store: Store,
        serve: ServeApi,
        mlflow_uri: str,
        *,
        clock: Callable[[], float] = time.time,
        applier: Applier | None = None,
    ) -> None:
        self.store = store
        self.report = Report()
        self._serve = serve
        self._mlflow_uri = mlflow_uri
        self._clock = clock
        self._applier = applier or Applier(store, serve, mlflow_uri)
        self._is_migrated = False
        self._tidied_at = 0.0
        self._said: dict[str, float] = {}

    @classmethod
    def of(cls, addresses: Addresses) -> Controller:
        """The controller of the stack that ``addresses`` names."""
        return cls(Store(addresses.store_url), ServeApi.of(addresses), addresses.mlflow_uri)

    def run(self, stop: threading.Event, *, poll_s: float) -> None:
        """Pass after pass until ``stop`` is set; no failure ends it."""
        while not stop.is_set():
            is_busy = self.one_pass()
            stop.wait(QUICK_S if is_busy else poll_s)

    def one_pass(self) -> bool:
        """Observe, plan and act once; whether something was done that a next pass should follow up soon."""
        now = self._clock()
        try:
            self._prepare(now)
            world = observe(self.store, self._serve, self._mlflow_uri, now)
            actions = plan(world.desired, world.observed, now)
            errors = [f"{name}: {problem}" for name, problem in world.problems.items()]
            errors += self._act(actions)
            self._finish(world, errors, now)
            return any(not isinstance(action, _BOOKKEEPING) for action in actions)
        except SeatrialError as error:
            self._finish(None, [str(error)], now)
        except Exception as error:  # a bug in one pass must not end the loop; it is logged whole
            log.exception("the pass failed")
            self._finish(None, [f"{type(error).__name__}: {error}"], now)
        return False

    def _prepare(self, now: float) -> None:
        if not self._is_migrated:
            self.store.migrate()
            self._is_migrated = True
        if now - self._tidied_at > TIDY_EVERY_S:
            self.store.forget_replicas(before=now - FORGET_REPLICA_S)
            self._tidied_at = now

    def _act(self, actions: list[Action]) -> list[str]:
        """Apply in order; what fails stops its own service only, until the next pass sees where it stands."""
        errors: list[str] = []
        for service, group in groupby(actions, key=lambda action: action.service):
            for action in group:
                try:
                    self._applier.apply(action)
                except SeatrialError as error:
                    errors.append(f"{service}: {type(action).__name__}: {error}")
                    break
                log.log(_level(action), "%s: %s", service, _summary(action))
        return errors

    def _finish(self, world: World | None, errors: list[str], now: float) -> None:
        aliases = dict(self.report.aliases)
        if world is not None:
            aliases |= {service.name: service.aliases for service in world.desired.services}
        self.report = Report(self.report.passes + 1, now, tuple(errors), aliases)
        for error in errors:
            if now - self._said.get(error, float("-inf")) >= REPEAT_LOG_S:
                self._said[error] = now
                log.warning("%s", error)
        self._said = {text: at for text, at in self._said.items() if now - at < REPEAT_LOG_S}


def wait_for_store(store: Store, stop: threading.Event) -> None:
    """Bring the tables up to date, however long the database takes to answer."""
    while not stop.is_set():
        try:
            store.migrate()
            return
        except RetryableError as error:
            log.warning("%s", error)
            stop.wait(2.0)


def _level(action: Action) -> int:
    return logging.DEBUG if isinstance(action, _BOOKKEEPING) else logging.INFO


def _summary(action: Action) -> str:
    name = type(action).__name__
    shown = {key: getattr(action, key, None) for key in ("alias", "version", "key", "value", "step")}
    details = ", ".join(f"{key}={value}" for key, value in shown.items() if value is not None)
    return f"{name}({details})" if details else name
