"""A whole world in memory: registry, store, Ray Serve and replicas, with the same rules as the real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from seatrial.config.service import ServiceConfig
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.record import Anchor
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.trial import Decision, Trial
from seatrial.reconcile import actions as do
from seatrial.reconcile.plan import plan
from seatrial.reconcile.world import (
    FATAL_LOAD,
    AppStatus,
    Desired,
    DesiredService,
    Observed,
    ObservedService,
    ReplicaStatus,
    ServiceState,
    VersionInfo,
)

NAME = "support-chat"


class CrashedError(Exception):
    """The controller was killed right after a side effect."""


class MovedError(Exception):
    """The registry refused a guarded alias write."""


def config(**trial: Any) -> dict[str, Any]:
    section = ServiceConfig.model_validate(
        {
            "name": NAME,
            "engine": {"base": "models:/base/1", "replicas": 2},
            "http": {"allow_anonymous": True},
            "trial": {"minimum_units": 100, **trial},
        }
    )
    return section.model_dump(mode="json")


class RefusedError(Exception):
    """The registry takes no writes."""


class Sim:
    """One service. `run()` is the controller; replicas follow what Serve tells them when they `tick()`."""

    def __init__(self, kinds: dict[str, str] | None = None, **trial: Any) -> None:
        self.now = 1_000_000.0
        self.config = config(**trial)
        self.config_at = 1.0
        self.is_there = True
        self.deleted_at: float | None = None
        self.status = "RUNNING"
        self.kinds = kinds or {}
        self.aliases: dict[str, str] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.broken: set[str] = set()
        self.deadly: set[str] = set()
        self.delayed: set[str] = set()
        self.is_away = False  # the registry answers nothing
        self.is_read_only = False  # it answers, and takes no writes
        self.refusing = ""  # why replicas do not take what they are told
        self.told_at = 0.0
        self.message = ""
        self.apps: dict[str, dict[str, Any]] = {}
        self.listed = ["r1", "r2"]
        self.rows: dict[str, ReplicaStatus] = {}
        self.state = ServiceState()
        self.trials: dict[str, Trial] = {}
        self.decisions: dict[str, Decision] = {}
        self.looks: dict[str, dict[int, Any]] = {}
        self.audits: list[str] = []
        self.moves: list[tuple[str, str]] = []
        self.records: dict[str, str | None] = {}  # key → champion, in the order of MLflow's chain
        self.anchored: list[str] = []
        self.anchor: Anchor | None = None
        self.others: dict[str, ObservedService] = {}  # services that are only looked at
        self.rates: dict[str, tuple[int, int]] = {}  # arm → units, successes
        self.failed: dict[str, int] = {}
        self.effects = 0
        self.crash_at: int | None = None
        self.writes: list[do.Action] = []

    # What the controller sees.

    def observe(self) -> tuple[Desired, Observed]:
        known = set(self.aliases.values()) | {self.state.served or "1"}
        trial = next((each for each in self.trials.values() if each.state == "open"), None)
        if trial:
            known |= set(trial.arms.values())
        versions = {version: self._info(version) for version in known}
        desired = DesiredService(
            NAME,
            self.config,
            "/",
            "models:/base/1",
            dict(self.aliases),
            versions,
            self.config_at,
            self.deleted_at,
        )
        if self.is_away and trial:
            desired = dataclasses.replace(desired, aliases=trial.arms, versions={}, is_read=False)
        decision = self.decisions.get(trial.id) if trial else None
        service = ObservedService(
            self.state,
            tuple(self.rows.values()),
            trial,
            decision,
            self.evidence(trial) if trial and not decision else None,
            max(self.looks.get(trial.id, {0: None})) if trial else 0,
            max((each.number for each in self.trials.values()), default=0),
            self.anchor,
        )
        apps = {
            name: AppStatus(
                name,
                self.status,
                self.message,
                app,
                tuple(self.listed) if name == NAME else ("full",),
                self.told_at,
            )
            for name, app in self.apps.items()
        }
        is_planned = self.is_there and (trial or not self.is_away)
        return Desired((desired,) if is_planned else ()), Observed(apps, {NAME: service, **self.others})

    def _info(self, version: str) -> VersionInfo:
        kind = self.kinds.get(version, "adapter")
        error = self.tags.get((version, "seatrial.load_error"))
        if kind == "none":
            return VersionInfo(version, problem="no `seatrial.kind` tag", load_error=error)
        return VersionInfo(version, kind, f"digest-{version}", load_error=error)

    def evidence(self, trial: Trial) -> Evidence:
        arms = []
        for name, version in trial.arms.items():
            units, wins = self.rates.get(name, (0, 0))
            failed = self.failed.get(name, 0)
            stats = ArmStats(units, wins, wins)
            arms.append(
                ArmEvidence(
                    name,
                    version,
                    units,
                    units,
                    units + failed,
                    units,
                    failed,
                    0,
                    units,
                    stats,
                    unanswered=units * failed / max(1, units + failed),
                )
            )
        looks = self.looks.get(trial.id, {})
        taken = tuple(look.counts_as for _, look in sorted(looks.items()) if look.judgement.look)
        return Evidence(self.now, tuple(arms), looks=taken)

    # What happens around the controller.

    @property
    def told(self) -> dict[str, Any]:
        return self.apps[NAME]["deployments"][0]["user_config"] if NAME in self.apps else {}

    @property
    def args(self) -> dict[str, Any]:
        return dict(self.apps[NAME]["args"])

    @property
    def traffic(self) -> dict[str, Any]:
        return self.told.get("traffic") or {}

    def tick(self) -> bool:
        """Every listed replica applies what it was told; whether any of them changed."""
        before = dict(self.rows)
        for replica in self.listed if self.told else []:
            loaded = {entry["version"]: self._load(entry["version"]) for entry in self.told["preload"]}
            revision = self.told["revision"]
            if self.refusing:
                loaded["config"] = f"error: {self.refusing}"
                revision = self.rows[replica].revision
            self.rows[replica] = ReplicaStatus(replica, revision, loaded, self.now)
        self.rows = {name: row for name, row in self.rows.items() if name in self.listed}
        return before != self.rows

    def _load(self, version: str) -> str:
        if version in self.delayed:
            return "error: MLflow does not answer, trying again"
        if version in self.deadly:
            return f"error: {FATAL_LOAD} the engine: it is dead"
        return "error: the file is broken" if version in self.broken else "ready"

    def apply(self, action: do.Action) -> None:
        if isinstance(action, do.MoveAlias | do.TagVersion | do.WriteAudit | do.WriteMove):
            assert not self.is_away
            if self.is_read_only:
                raise RefusedError
        self.writes.append(action)
        match action:
            case do.PutApps(apps=apps, owned=owned):
                if apps:
                    self._check_ready(apps[0])
                others = {name: app for name, app in self.apps.items() if name not in owned}
                self.apps = {**others, **{app["name"]: dict(app) for app in apps}}
                self.told_at = self.now
            case do.PutState(state=state):
                self.state = state
            case do.RemoveService(deleted_at=deleted_at):
                self.is_there = self.is_there and self.deleted_at != deleted_at
            case do.OpenTrial(trial=trial):
                self.trials.setdefault(trial.id, trial)
                self.rates, self.failed = {}, {}
            case do.ChangeTrial(trial=trial, look=look):
                self._add_look(look)
                kept = self.trials[trial.id]
                changed = {"table": trial.table, "ramped_at": trial.ramped_at, "dropped": trial.dropped}
                self.trials[trial.id] = dataclasses.replace(kept, **changed)
            case do.AddLook(look=look):
                self._add_look(look)
            case do.Decide(decision=decision, look=look):
                self._add_look(look)
                self.decisions.setdefault(decision.trial_id, decision)
            case do.MarkStep(trial_id=trial_id, step=step):
                trial = self.trials[trial_id]
                steps = trial.steps if step in trial.steps else (*trial.steps, step)
                self.trials[trial_id] = dataclasses.replace(trial, steps=steps)
            case do.CloseTrial(decision=decision):
                trial = self.trials[decision.trial_id]
                self.trials[trial.id] = dataclasses.replace(trial, state="closed", verdict=decision.verdict)
            case do.MoveAlias(alias=alias, version=version, expected=expected):
                found = self.aliases.get(alias)
                if found != version and found != expected:
                    raise MovedError(alias)
                self.aliases.pop(alias, None)
                if version is not None:
                    self.aliases[alias] = version
            case do.TagVersion(version=version, key=key, value=value):
                self.tags.pop((version, key), None)
                if value is not None:
                    self.tags[version, key] = value
            case do.WriteAudit(trial=trial):
                if trial.id not in self.records:
                    self.audits.append(trial.id)
                self._record(trial.id, self.aliases.get("champion"))
            case do.WriteMove(move=move):
                if move.key not in self.records:
                    self.moves.append((move.before, move.after))
                self._record(move.key, move.after)
            case _:
                raise TypeError(action)
        self._effect()

    def _effect(self) -> None:
        self.effects += 1
        if self.crash_at is not None and self.effects == self.crash_at:
            raise CrashedError

    def _add_look(self, look: Any) -> None:
        looks = self.looks.setdefault(look.trial_id, {}) if look else {}
        if look and (look.units not in looks or look.judgement.look):
            looks[look.units] = look

    def _record(self, key: str, champion: str | None) -> None:
        """First in MLflow, then the record's hash in the store; what is there already stays."""
        self.records.setdefault(key, champion)
        self._effect()
        number = list(self.records).index(key) + 1
        if key not in self.anchored:
            self.anchored.append(key)
            if self.anchor is None or self.anchor.sequence < number:
                self.anchor = Anchor(key, NAME, number, f"{number:064}", self.records[key])

    def _check_ready(self, app: dict[str, Any]) -> None:
        """Promise 2: whatever newly gets traffic has been warmed up in every replica."""
        new = _versions(app["deployments"][0]["user_config"].get("traffic"))
        for version in new - _versions(self.traffic):
            assert self.listed
            for replica in self.listed:
                row = self.rows.get(replica)
                assert row is not None, f"{replica} has said nothing, yet {version} gets traffic"
                assert row.loaded.get(version) == "ready", f"{version} is not ready in {replica}"

    def one_pass(self) -> int:
        """One pass of the controller; how many actions it took. A crash loses the rest of the pass."""
        out = self._out()
        actions = plan(*self.observe(), self.now)
        done = 0
        try:
            for action in actions:
                done += 1
                self.apply(action)
        except (CrashedError, MovedError, RefusedError):
            pass
        if not any(isinstance(action, do.Decide | do.ChangeTrial) for action in actions[:done]):
            assert not out & self.split, f"{out} are out and still have users"
        return done

    @property
    def split(self) -> set[tuple[str, str]]:
        """Trial and name of each arm that replicas were told to split by."""
        trial = self.traffic.get("trial") or {}
        return {(trial["id"], arm["name"]) for arm in trial.get("arms", [])}

    def _out(self) -> set[tuple[str, str]]:
        """Those that nobody may be assigned to after this pass, whatever the registry does."""
        found: set[tuple[str, str]] = set()
        for trial in self.trials.values() if self.is_there and self.deleted_at is None else ():
            decision = self.decisions.get(trial.id)
            is_over = decision is not None and decision.verdict != "promote"
            if trial.state == "open":
                found |= {(trial.id, arm) for arm in (trial.arms if is_over else trial.dropped)}
        return found

    def run(self, limit: int = 60) -> None:
        """Passes and ticks until nothing changes any more."""
        for _ in range(limit):
            acted = self.one_pass()
            if not self.tick() and not acted:
                return
        raise AssertionError(f"no rest after {limit} passes: {plan(*self.observe(), self.now)}")


def _versions(traffic: dict[str, Any] | None) -> set[str]:
    if not traffic:
        return set()
    arms = (traffic.get("trial") or {}).get("arms", [])
    return {*traffic["aliases"].values(), *(arm["version"] for arm in arms)}


@pytest.fixture
def sim() -> Sim:
    return Sim()


@pytest.fixture
def make_sim() -> Callable[..., Sim]:
    return Sim
