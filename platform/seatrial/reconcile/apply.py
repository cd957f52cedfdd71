"""Do what a plan asks for: one short, repeatable side effect for each action."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import singledispatchmethod

from seatrial.reconcile.actions import (
    Action,
    AddLook,
    ChangeTrial,
    CloseTrial,
    Decide,
    MarkStep,
    MoveAlias,
    OpenTrial,
    PutApps,
    PutState,
    RemoveService,
    TagVersion,
    WriteAudit,
    WriteMove,
)
from seatrial.reconcile.serve import ServeApi
from seatrial.registry import aliases, audit
from seatrial.registry.client import NotRegisteredError, asking, connect
from seatrial.store import Store

TAG_CHARS = 5000  # MLflow's own limit for a version tag


class Applier:
    """The hands of the controller."""

    def __init__(self, store: Store, serve: ServeApi, mlflow_uri: str) -> None:
        self._store = store
        self._serve = serve
        self._uri = mlflow_uri

    @singledispatchmethod
    def apply(self, action: Action) -> None:
        """Do it; doing it again changes nothing.

        Raises:
            RetryableError: what it needs did not answer.
            AliasMovedError: a person moved the alias meanwhile.
        """
        raise TypeError(f"no way to do {type(action).__name__}")

    @apply.register
    def _(self, action: PutApps) -> None:
        self._serve.put(action.apps, owned=action.owned)

    @apply.register
    def _(self, action: PutState) -> None:
        self._store.put_state(action.service, action.state.to_json())

    @apply.register
    def _(self, action: RemoveService) -> None:
        self._store.remove_service(action.service, deleted_at=action.deleted_at)

    @apply.register
    def _(self, action: OpenTrial) -> None:
        self._store.open_trial(action.trial)

    @apply.register
    def _(self, action: ChangeTrial) -> None:
        self._store.change_trial(action.trial, action.look)

    @apply.register
    def _(self, action: AddLook) -> None:
        self._store.add_look(action.look)

    @apply.register
    def _(self, action: Decide) -> None:
        self._store.decide(action.decision, action.look)

    @apply.register
    def _(self, action: MarkStep) -> None:
        self._store.mark_step(action.trial_id, action.step)

    @apply.register
    def _(self, action: CloseTrial) -> None:
        self._store.close_trial(action.decision)

    @apply.register
    def _(self, action: MoveAlias) -> None:
        name, alias, expected = action.service, action.alias, action.expected
        with _unless_gone():
            if action.version is None:
                aliases.remove(name, alias, expected=expected, uri=self._uri)
            else:
                aliases.move(name, alias, action.version, expected=expected, uri=self._uri)

    @apply.register
    def _(self, action: TagVersion) -> None:
        client = connect(self._uri)
        name, version, key, value = action.service, action.version, action.key, action.value
        with _unless_gone():
            if value is None:
                client.delete_model_version_tag(name, version, key)
            else:
                client.set_model_version_tag(name, version, key, value[:TAG_CHARS])

    @apply.register
    def _(self, action: WriteAudit) -> None:
        looks = self._store.looks(action.trial.id)
        with asking():
            found = audit.write(action.trial, action.decision, looks, uri=self._uri)
        self._store.add_anchor(found.anchor(action.service))

    @apply.register
    def _(self, action: WriteMove) -> None:
        with asking():
            found = audit.write_move(action.move, uri=self._uri)
        self._store.add_anchor(found.anchor(action.service))


@contextmanager
def _unless_gone() -> Iterator[None]:
    """A version or tag that somebody has deleted needs nothing more."""
    with suppress(NotRegisteredError), asking(NotRegisteredError):
        yield
