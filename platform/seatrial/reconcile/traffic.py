"""What the replicas of a service are told: versions to load, traffic, and the applications around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from seatrial.experiments.trial import CHAMPION, Trial
from seatrial.reconcile.view import ENGINE_DEPLOYMENT, View, full_app_name

ENGINE = "seatrial_serving.application:build"
FULL_ENGINE = "seatrial_serving.application:build_full"


def wanted_apps(view: View) -> tuple[dict[str, Any], ...]:
    """Every application of the service as it should be."""
    told = user_config(view)
    main = {
        "name": view.desired.name,
        "route_prefix": view.desired.route_prefix,
        "import_path": ENGINE,
        "args": _engine_args(view),
        "deployments": [
            {
                **_replicas(view),
                "user_config": told,
            }
        ],
    }
    return (main, *_full_apps(view, told))


def _engine_args(view: View) -> dict[str, Any]:
    """What the replicas are built from; a change replaces them.

    ``attempt`` is when a person last asked for exactly this. Ray Serve does nothing when it is told again
    what has failed to start, so deploying again after a failure must change something. Going back to what
    the replicas are built from changes nothing, and so ends the attempt at replacing them.
    """
    asked_at = view.desired.config_at
    wanted = {"service": _engine_section(view), "base_path_ref": view.desired.base_ref}
    told = view.engine_args
    attempt: float = told.get("attempt", asked_at)
    if {**told, "attempt": 0.0} != {**wanted, "attempt": 0.0}:
        built = view.observed.state.engine_args
        is_back = view.app is not None and {**built, "attempt": 0.0} == {**wanted, "attempt": 0.0}
        return dict(built) if is_back else {**wanted, "attempt": asked_at}
    is_again = view.app is not None and view.app.status == "DEPLOY_FAILED" and attempt < asked_at
    return {**wanted, "attempt": asked_at if is_again else attempt}


def user_config(view: View) -> dict[str, Any]:
    """The Engine's user_config; ``revision`` is a digest of all the rest."""
    target = target_champion(view)
    traffic = _traffic(view, target) if target is not None else None
    body = {
        "service": view.desired.name,
        "http": view.desired.config["http"],
        "preload": _preload(view, target),
        "traffic": traffic,
    }
    return revised(body)


def revised(body: Mapping[str, Any]) -> dict[str, Any]:
    """What replicas are told, under the revision that says so."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return {**body, "revision": hashlib.sha256(text.encode()).hexdigest()[:16]}


def target_champion(view: View) -> str | None:
    """Who should get the traffic: the wished version once it is ready everywhere, until then the old one.

    An alias that was taken away wishes for nothing else, so the old one goes on as well.
    """
    wished = view.wished
    if wished is not None and (wished == view.champion or view.is_ready(wished)):
        return wished
    if view.champion is not None:
        return view.champion
    served = view.observed.state.served
    # Serve was started anew and no wished version can be had: go on with what was served before.
    is_without = wished is None or view.blocker(wished) is not None
    if served is not None and is_without and view.is_ready(served):
        return served
    return None


def shown_trial(view: View, target: str) -> Trial | None:
    """The trial that the traffic should be split by: open, its champion served, its versions ready."""
    trial = view.live_trial
    if trial is None or trial.champion != target:
        return None
    is_shown = (view.traffic.get("trial") or {}).get("id") == trial.id
    versions = (arm.version for arm in trial.table.arms)
    return trial if is_shown or all(map(view.is_ready, versions)) else None


def _traffic(view: View, target: str) -> dict[str, Any]:
    aliases = {
        alias: version
        for alias, version in sorted(view.desired.aliases.items())
        if view.is_ready(version) or (version in view.carried and not view.blocker(version))
    }
    trial = shown_trial(view, target)
    phrases = list(view.desired.config["trial"].get("refusal_phrases") or ())
    return {
        "aliases": {**aliases, CHAMPION: target},
        "trial": None if trial is None else trial.table.to_json(),
        "shadow": _shadow(view, target),
        **({"refusal_phrases": phrases} if phrases else {}),
    }


def _shadow(view: View, target: str) -> dict[str, Any] | None:
    """The version that sees a copy of the traffic, once it is ready everywhere."""
    version = view.shadow
    if version is None or version == target:
        return None
    is_kept = (view.traffic.get("shadow") or {}).get("version") == version and not view.blocker(version)
    if not is_kept and not view.is_ready(version):
        return None
    return {"version": version, "share": view.desired.config["trial"].get("shadow_share", 1.0)}


def _preload(view: View, target: str | None) -> list[dict[str, Any]]:
    """Entries of all versions that are served or may soon be, by number."""
    kept = [target, view.champion, view.observed.state.served]
    keep = {version for version in kept if version is not None}
    trial = view.live_trial
    if trial is not None:
        keep |= {arm.version for arm in trial.table.arms}
    wished = {version for version in view.aliased if not view.blocker(version)}
    entries = [_entry(view, version) for version in sorted(keep | wished, key=_number)]
    return [entry for entry in entries if entry is not None]


def _entry(view: View, version: str) -> dict[str, Any] | None:
    info = view.info(version)
    if info.problem:
        # A version that is being served stays loaded even if its registration has gone.
        kept = view.told.get(version)
        return None if kept is None else dict(kept)
    entry = {"version": version, "kind": info.kind, "digest": info.digest}
    return {**entry, "app": full_app_name(view.desired.name, version)} if info.is_full else entry


def _full_apps(view: View, told: dict[str, Any]) -> list[dict[str, Any]]:
    """One application for each whole-model version; an old one stays until no replica can call it."""
    entries = {entry["app"]: entry for entry in told["preload"] if "app" in entry}
    if not view.is_settled or told["revision"] != view.user_config.get("revision"):
        entries = {entry["app"]: entry for entry in view.told.values() if "app" in entry} | entries
        kept = _existing_full_apps(view, set(entries))
    else:
        kept = []
    service = _engine_section(view)
    made = [
        {
            "name": name,
            "route_prefix": None,
            "import_path": FULL_ENGINE,
            "args": {"service": service, "version": entry["version"], "digest": entry["digest"]},
            "deployments": [_replicas(view)],
        }
        for name, entry in sorted(entries.items())
    ]
    return made + kept


def _existing_full_apps(view: View, except_for: set[str]) -> list[dict[str, Any]]:
    prefix = full_app_name(view.desired.name, "")
    return [
        dict(app.config)
        for name, app in sorted(view.apps.items())
        if name.startswith(prefix) and name not in except_for and app.config and app.status != "DELETING"
    ]


def _replicas(view: View) -> dict[str, Any]:
    return {
        "name": ENGINE_DEPLOYMENT,
        "num_replicas": view.desired.config["engine"]["replicas"],
        # Replacements start beside the old replicas, which answer until then. Serve's default is the reverse.
        "max_surge_percent": 100,
    }


def _engine_section(view: View) -> dict[str, Any]:
    # Whatever stands in an application's args restarts its replicas when it changes, so rules that can be
    # changed on the fly (http, trial) and the number of replicas stay out of it.
    engine = {key: value for key, value in view.desired.config["engine"].items() if key != "replicas"}
    return {"name": view.desired.name, "engine": engine}


def _number(version: str) -> tuple[int, str]:
    return (int(version) if version.isdigit() else 0, version)
