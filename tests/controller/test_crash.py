"""The controller killed after each of its side effects, on a real store and a real MLflow server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from seatrial.config.service import ServiceConfig
from seatrial.controller.loop import Controller
from seatrial.experiments.assignment import assign
from seatrial.reconcile.actions import Action
from seatrial.reconcile.apply import Applier
from seatrial.registry import audit, audit_plot
from seatrial.registry.client import connect
from seatrial.store import Store, outcome_row
from seatrial.store import store as store_module
from seatrial.store.database import writing
from tests.controller.one_replica import OneReplica

pytestmark = pytest.mark.slow


class KilledError(BaseException):
    """Not an Exception, so that nothing in the controller can catch it."""


class MortalApplier(Applier):
    """Dies right after each side effect that it has not ``survived`` before; None is immortal."""

    def __init__(self, *args: Any, survived: set[str] | None) -> None:
        super().__init__(*args)
        self.done: list[Action] = []
        self._survived = survived

    def apply(self, action: Action) -> None:
        super().apply(action)
        self.done.append(action)
        if self._survived is not None and repr(action) not in self._survived:
            self._survived.add(repr(action))
            raise KilledError


class Reaper:
    """Kills once after every write that leaves the process: a request to MLflow, a commit, a Serve config."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.survived: set[Any] = set()
        self.doing = ""  # the action under way; nothing else is killed
        self._seen: Counter[Any] = Counter()
        send = requests.adapters.HTTPAdapter.send

        def send_and_die(adapter: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            response = send(adapter, request, *args, **kwargs)
            path = request.path_url.split("?")[0]
            if request.method != "GET" and not path.endswith("/search"):
                self.after(request.method, path, _tag_of(request.body))
            return response

        @contextmanager
        def write_and_die(engine: Any) -> Iterator[Any]:
            with writing(engine) as connection:
                yield connection
            self.after("commit")

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_and_die)
        monkeypatch.setattr(store_module, "writing", write_and_die)

    def watch(self, story: Story) -> None:
        """Sit beside the story's controller, which was just started."""
        put, apply = partial(type(story.serve).put, story.serve), story.applier.apply

        def put_and_die(*args: Any, **kwargs: Any) -> None:
            doing, self.doing = self.doing, ""  # what the replica then writes is not the controller's
            put(*args, **kwargs)
            self.doing = doing
            self.after("serve")

        def apply_named(action: Action) -> None:
            self.doing, self._seen = repr(action), Counter()
            try:
                apply(action)
            finally:
                self.doing = ""

        story.serve.put = put_and_die
        story.applier.apply = apply_named

    def after(self, *effect: Any) -> None:
        if not self.doing:
            return
        self._seen[effect] += 1
        key = (self.doing, effect, self._seen[effect])
        if key not in self.survived:
            self.survived.add(key)
            raise KilledError


def _tag_of(body: Any) -> str | None:
    try:
        return str(json.loads(body).get("key"))
    except (TypeError, ValueError, AttributeError):
        return None


class Story:
    """From an empty service to a promotion, by a controller that may die again and again."""

    def __init__(
        self, uri: str, folder: Path, name: str, *, mortal: bool = False, reaper: Reaper | None = None
    ) -> None:
        self.name = name
        self.reaper = reaper
        self.uri = uri
        self.store = Store(f"sqlite:///{folder / name}.db")
        self.store.migrate()
        self.serve = OneReplica(self.store)
        self.client = connect(uri)
        self.client.create_registered_model(name)
        self.survived: set[str] | None = set() if mortal else None
        self.effects = 0
        self.deaths = 0
        config = ServiceConfig.model_validate(
            {
                "name": name,
                "engine": {"base": "models:/base/1"},
                "http": {"allow_anonymous": True},
                "trial": {"minimum_units": 100},
            }
        )
        self.store.put_service(name, config.model_dump(mode="json"), now=1.0)
        self._start()

    def _start(self) -> None:
        self.applier = MortalApplier(self.store, self.serve, self.uri, survived=self.survived)
        self.controller = Controller(
            self.store,
            self.serve,
            self.uri,
            applier=self.applier,
            holder="story",  # whoever comes after a death need not wait for its lease to run out
        )
        if self.reaper is not None:
            self.reaper.watch(self)

    def rest(self) -> None:
        """Passes until one has nothing to do; a controller that dies is started again."""
        for _ in range(60):
            before = len(self.applier.done)
            try:
                self.controller.one_pass()
            except KilledError:
                self.effects += len(self.applier.done)
                self.deaths += 1
                self._start()
                continue
            assert self.controller.report.errors == ()
            if len(self.applier.done) == before:
                return
        raise AssertionError("no rest")

    def tell(self) -> dict[str, Any]:
        for alias in ("champion", "challenger"):
            self.point(alias, self.register(alias))
        self._visit()
        self.rest()
        self.effects += len(self.applier.done)
        return self.end()

    def tell_deletion(self) -> dict[str, Any]:
        """Another story: the service is deleted in the middle of its trial."""
        for alias in ("champion", "challenger"):
            self.point(alias, self.register(alias))
        assert self.store.latest_trial(self.name).state == "open"
        assert self.store.ask_delete(self.name, now=2.0)
        self.rest()
        self.effects += len(self.applier.done)
        return self.end()

    def register(self, digest: str) -> str:
        run = self.client.create_run("0").info
        tags = {"seatrial.kind": "adapter", "seatrial.digest": digest}
        source = f"{run.artifact_uri}/model"
        return str(self.client.create_model_version(self.name, source, run.run_id, tags=tags).version)

    def point(self, alias: str, version: str) -> None:
        self.client.set_registered_model_alias(self.name, alias, version)
        self.rest()

    def _visit(self) -> None:
        trial = self.store.latest_trial(self.name)
        rows, outcomes, seen = [], [], {"champion": 0, "challenger": 0}
        for number in range(300):
            unit = f"unit-{number}"
            arm = assign(unit, trial.table)
            seen[arm.name] += 1
            row = {"request_id": unit, "trial_id": trial.id, "service": self.name, "unit": unit}
            row |= {"sticky": True, "arm": arm.name, "fallback": False, "status": 200, "at": 2.0}
            rows.append({**row, "assigned_version": arm.version, "served_version": arm.version})
            is_hit = seen[arm.name] % 5 < (1 if arm.name == "champion" else 4)
            outcomes.append(outcome_row(self.name, unit, "resolved", float(is_hit), now=3.0))
        self.store.add_exposures(rows)
        self.store.add_outcomes(outcomes)

    def end(self) -> dict[str, Any]:
        trial = self.store.latest_trial(self.name)
        model = self.client.get_registered_model(self.name)
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        own = {"seatrial.kind", "seatrial.digest"}
        records = audit.chain(self.name, uri=self.uri)
        assert audit.verify_chain(records) == []
        experiment = self.client.get_experiment_by_name(audit.EXPERIMENT)
        runs = self.client.search_runs(
            [experiment.experiment_id], f"tags.`{audit.SERVICE_TAG}` = '{self.name}'"
        )
        return {
            "aliases": {alias: str(version) for alias, version in model.aliases.items()},
            "tags": {
                str(each.version): {
                    key.replace(self.name, "NAME"): value
                    for key, value in each.tags.items()
                    if key not in own
                }
                for each in versions
            },
            "trial": (trial.number, trial.state, trial.verdict, trial.steps),
            "records": [
                (each.sequence, each.body["verdict"], each.body["champion_after"]) for each in records
            ],
            "audit_runs": [run.info.status for run in runs],
            "services": len(self.store.services()),
            "replicas": len(self.store.replicas(self.name)),
            "traffic": [
                app["deployments"][0]["user_config"]["traffic"] for app in self.serve.deployed.values()
            ],
            "looks": [look.units for look in self.store.looks(f"{self.name}-1")],
        }


@pytest.fixture(scope="module")
def whole(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of a story without a death."""
    story = Story(mlflow_uri, tmp_path_factory.mktemp("whole"), "whole")
    end = story.tell()
    assert story.effects > 20
    return end


def test_without_a_death_the_story_ends_in_a_promotion(whole: dict[str, Any]):
    assert whole["aliases"] == {"champion": "2", "previous": "1"}
    assert whole["records"] == [(1, "promote", "2")]
    assert whole["audit_runs"] == ["FINISHED"]
    (traffic,) = whole["traffic"]
    assert traffic == {"aliases": {"champion": "2", "previous": "1"}, "trial": None, "shadow": None}


def test_killed_after_every_side_effect_the_end_is_the_same_and_nothing_is_twice(
    whole: dict[str, Any], mlflow_uri: str, tmp_path: Path
):
    story = Story(mlflow_uri, tmp_path, "killed", mortal=True)
    assert story.tell() == whole
    assert story.deaths > 20


def test_killed_after_every_write_that_leaves_the_process_the_end_is_the_same(
    whole: dict[str, Any], mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Generated: an action of several requests, such as an audit record, is cut after each of them."""
    reaper = Reaper(monkeypatch)
    story = Story(mlflow_uri, tmp_path, "reaped", reaper=reaper)
    assert story.tell() == whole
    kinds = {effect[0] for _, effect, _ in reaper.survived}
    assert {"serve", "commit", "POST", "DELETE"} <= kinds
    assert story.deaths == len(reaper.survived) > 30


@pytest.mark.parametrize("after", ["each action", "each write"])
def test_a_deletion_ends_the_same_whatever_it_dies_after(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
):
    name = f"deleted-after-{after.partition(' ')[2]}"
    end = Story(mlflow_uri, tmp_path, f"{name}-undisturbed").tell_deletion()
    assert end["trial"][1:3] == ("closed", "superseded")
    assert end["records"] == [(1, "superseded", "1")]
    assert end["aliases"] == {"champion": "1", "challenger": "2"}
    assert (end["services"], end["replicas"], end["traffic"], end["audit_runs"]) == (0, 0, [], ["FINISHED"])
    reaper = Reaper(monkeypatch) if after == "each write" else None
    story = Story(mlflow_uri, tmp_path, name, mortal=reaper is None, reaper=reaper)
    assert story.tell_deletion() == end
    assert story.deaths > 15
    assert story.controller.one_pass() is False
    assert story.store.put_service(name, {"name": name}, now=9.0), "nothing is left of it"


def test_killed_while_writing_the_audit_record_it_is_completed_in_the_same_run(
    whole: dict[str, Any], mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    draw = audit_plot.draw

    def die_once(*args: Any) -> Any:
        monkeypatch.setattr(audit_plot, "draw", draw)
        raise KilledError

    monkeypatch.setattr(audit_plot, "draw", die_once)
    story = Story(mlflow_uri, tmp_path, "half-written")
    assert story.tell() == whole
    assert story.deaths == 1


def test_a_champion_moved_by_hand_is_recorded_once_whatever_write_it_dies_after(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reaper = Reaper(monkeypatch)
    story = Story(mlflow_uri, tmp_path, "by-hand", reaper=reaper)
    first, second = story.register("one"), story.register("two")
    for version in (first, second, first, second):
        story.point("champion", version)
    assert story.deaths == len(reaper.survived) > 20
    history = audit.history("by-hand", uri=mlflow_uri)
    moves = [(each.body["champion_before"], each.body["champion_after"]) for each in history.records]
    assert moves == [(first, second), (second, first), (first, second)]
    assert history.hidden == {}
    assert audit.verify_history(history, story.store.anchors("by-hand"), {}) == []
    assert story.client.get_registered_model("by-hand").aliases == {"champion": "2", "previous": "1"}


def test_a_record_that_was_changed_or_taken_away_is_found(mlflow_uri: str, tmp_path: Path):
    Story(mlflow_uri, tmp_path, "tampered").tell()
    (record,) = audit.chain("tampered", uri=mlflow_uri)
    assert audit.verify_chain([record]) == []
    client = connect(mlflow_uri)
    client.log_dict(record.run_id, {**record.body, "verdict": "roll_back"}, audit.RECORD)
    (changed,) = audit.chain("tampered", uri=mlflow_uri)
    assert "was changed" in audit.verify_chain([changed])[0]
    assert len(audit.verify_chain([record, record])) == 2
    files = {item.path for item in client.list_artifacts(record.run_id)}
    assert files == {audit.RECORD, audit.PLOT}
