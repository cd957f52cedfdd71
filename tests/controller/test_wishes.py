"""A person moves an alias while the controller does, on a real MLflow server: the person's wish stands."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from seatrial.reconcile.actions import Action, Decide, MoveAlias
from seatrial.registry import aliases, audit_plot
from tests.controller.test_crash import Story

pytestmark = pytest.mark.slow
Step = tuple[str, int]


class Person:
    """Moves an alias once, when it is told to, at one of the moments that it goes through."""

    def __init__(self, act: Callable[[], None], at: Step | None) -> None:
        self.moments: list[Step] = []
        self.has_acted = False
        self._act, self._at = act, at
        self._is_acting = False

    def at(self, name: str) -> None:
        """This is such a moment; the same name may come again."""
        if self._is_acting:
            return
        moment = (name, sum(1 for each, _ in self.moments if each == name))
        self.moments.append(moment)
        if moment == self._at:
            self._is_acting = self.has_acted = True
            self._act()
            self._is_acting = False


class Drawing:
    """Draws a record's picture once: it takes longer than all else, and says nothing of aliases."""

    def __init__(self) -> None:
        self._draw = audit_plot.draw
        self._picture = b""

    def __call__(self, *about: Any) -> Drawing:
        """As :func:`audit_plot.draw`."""
        if not self._picture:
            file = io.BytesIO()
            self._draw(*about).savefig(file)
            self._picture = file.getvalue()
        return self

    def savefig(self, path: Path) -> None:
        """As a figure's."""
        path.write_bytes(self._picture)


def version_of(story: Story) -> str:
    run = story.client.create_run("0").info
    tags = {"seatrial.kind": "adapter", "seatrial.digest": "x"}
    made = story.client.create_model_version(story.name, f"{run.artifact_uri}/model", run.run_id, tags=tags)
    return str(made.version)


def told(
    story: Story, patch: pytest.MonkeyPatch, alias: str, at: Step | None
) -> tuple[Person, dict[str, str]]:
    """A trial that ends in the promotion of version 2, while a person sets ``alias`` to version 3 at ``at``.

    Moments are before and after each action of the end, and after each write of an alias, before it is read
    again.
    """
    for name in ("champion", "challenger"):
        story.client.set_registered_model_alias(story.name, name, version_of(story))
        story.rest()
    third = version_of(story)
    story._visit()
    person = Person(lambda: story.client.set_registered_model_alias(story.name, alias, third), at)
    apply, send = story.applier.apply, requests.adapters.HTTPAdapter.send
    is_ending = False

    def watched_apply(action: Action) -> None:
        nonlocal is_ending
        is_ending = is_ending or isinstance(action, Decide)
        name = type(action).__name__ + (f" {action.alias}" if isinstance(action, MoveAlias) else "")
        if is_ending:
            person.at(f"before {name}")
        apply(action)
        if is_ending:
            person.at(f"after {name}")

    def watched_send(adapter: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        response = send(adapter, request, *args, **kwargs)
        if is_ending and request.method != "GET" and "/alias" in request.path_url:
            person.at(f"written {request.method}")
        return response

    with patch.context() as patched:
        patched.setattr(requests.adapters.HTTPAdapter, "send", watched_send)
        story.applier.apply = watched_apply  # type: ignore[method-assign]
        settle(story)
    return person, {name: str(each) for name, each in aliases.read(story.name, uri=story.uri).items()}


def settle(story: Story) -> None:
    """Passes until two have had nothing to do; an alias that was moved meanwhile is a passing trouble."""
    quiet = 0
    for _ in range(60):
        before = len(story.applier.done)
        story.controller.one_pass()
        is_quiet = len(story.applier.done) == before and story.controller.report.errors == ()
        quiet = quiet + 1 if is_quiet else 0
        if quiet == 2:
            return
    raise AssertionError(story.controller.report)


@pytest.mark.parametrize("alias", ["champion", pytest.param("challenger", marks=pytest.mark.soak)])
def test_whenever_a_person_moves_an_alias_while_a_trial_ends_their_wish_stands(
    alias: str, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Generated: once for every moment of an end that nobody disturbs."""
    monkeypatch.setattr(audit_plot, "draw", Drawing())
    monkeypatch.setattr("seatrial.controller.trouble.FIRST_REST_S", 0.05)  # after each move that it runs into
    undisturbed = Story(mlflow_uri, tmp_path, f"calm-{alias}")
    person, end = told(undisturbed, monkeypatch, alias, None)
    assert end == {"champion": "2", "previous": "1"}
    names = {name for name, _ in person.moments}
    assert {"before Decide", "written POST", "written DELETE", "after CloseTrial"} <= names
    for number, moment in enumerate(person.moments):
        story = Story(mlflow_uri, tmp_path, f"wish-{alias}-{number}")
        acted, end = told(story, monkeypatch, alias, moment)
        assert acted.has_acted, moment
        assert end[alias] == "3", moment
        trial = story.store.latest_trial(story.name)
        assert trial is not None
        champion = story.serve.deployed[story.name]["deployments"][0]["user_config"]["traffic"]["aliases"]
        assert champion["champion"] == end["champion"], moment
        if alias == "challenger":  # a new wish for a trial
            assert (trial.state, trial.challengers) == ("open", {"challenger": "3"}), moment
            assert trial.champion == end["champion"], moment
        story.store.close()


def test_a_write_follows_the_read_that_allows_it_with_nothing_in_between(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """MLflow has no compare-and-set: a move in just that gap cannot be seen, so that it must be short."""
    story = Story(mlflow_uri, tmp_path, "gap")
    first, second = version_of(story), version_of(story)
    said: list[str] = []
    send, connect = requests.adapters.HTTPAdapter.send, aliases.connect

    def listening(adapter: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        said.append(f"{request.method} {request.path_url.partition('?')[0].rpartition('mlflow/')[2]}")
        return send(adapter, request, *args, **kwargs)

    def probing(uri: str | None = None) -> Any:
        said.append("probe")
        return connect(uri)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", listening)
    monkeypatch.setattr(aliases, "connect", probing)
    aliases.move("gap", "champion", first, expected=None, uri=mlflow_uri)
    aliases.move("gap", "champion", second, expected=first, uri=mlflow_uri)
    aliases.remove("gap", "champion", expected=second, uri=mlflow_uri)
    read = "GET registered-models/get"
    writes = [at for at, each in enumerate(said) if each.endswith("registered-models/alias")]
    assert [said[at].split()[0] for at in writes] == ["POST", "POST", "DELETE"]
    assert [(said[at - 1], said[at + 1]) for at in writes] == [(read, read)] * 3, said


@pytest.mark.parametrize("expected", [None, "2"])
def test_an_alias_that_is_not_where_it_was_expected_is_left_alone(
    mlflow_uri: str, tmp_path: Path, expected: str | None
):
    name = f"left-{expected or 'unset'}"
    story = Story(mlflow_uri, tmp_path, name)
    versions = [version_of(story) for _ in range(3)]
    story.client.set_registered_model_alias(name, "champion", versions[0])
    with pytest.raises(aliases.AliasMovedError) as caught:
        aliases.move(name, "champion", versions[2], expected=expected, uri=mlflow_uri)
    assert caught.value.found == "1"
    with pytest.raises(aliases.AliasMovedError):
        aliases.remove(name, "champion", expected=versions[1], uri=mlflow_uri)
    assert aliases.read(name, uri=mlflow_uri) == {"champion": "1"}
