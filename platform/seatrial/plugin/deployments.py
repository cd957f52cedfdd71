"""The target `seatrial` of `mlflow deployments`: what `seatrial deploy`, `promote` and `delete` do."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.protos import databricks_pb2 as codes

from seatrial.config.addresses import Addresses
from seatrial.errors import UserError
from seatrial.experiments.trial import CHALLENGER, CHAMPION
from seatrial.monitoring.proxy import direct_loopback
from seatrial.plugin.errors import DeploymentError, as_mlflow
from seatrial.plugin.options import Options
from seatrial.plugin.predictions import ask, rows_of
from seatrial.submission import controller, deploy, promote, removal
from seatrial.submission.submit import LOOPBACK_HOSTS

TARGET = FLAVOR = "seatrial"
HELP = """\
Target `seatrial`: a service of the Seatrial stack that this environment (or the .seatrial folder here) names.
Its name is that of the registered model that it serves: -m models:/NAME/VERSION or -m models:/NAME@ALIAS.

  create   deploys the service and makes the model its champion
  update   sets the challenger alias, which opens a trial; another one with -C as=ALIAS
  predict  takes rows with `prompt` or `messages`, with the key in SEATRIAL_API_KEY
  delete   takes the service away; the registered model stays

  -C config=FILE            a service file, or its fields one by one:
  -C engine.base=MODEL      -C http.allow_anonymous=true, -C trial.alpha=0.05 and so on
  -C as=challenger-b        one of several challengers; also champion (or promote=true), shadow
  -C wait=false             do not wait until it is so
  -C timeout_s=SECONDS      how long to wait (900)
"""


def target_help() -> str:
    """What `mlflow deployments help -t seatrial` prints."""
    return HELP


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> None:
    """Create the deployment, on a stack of this machine only.

    Raises:
        DeploymentError: the stack is elsewhere, or as :meth:`SeatrialClient.create_deployment`.
    """
    with as_mlflow():
        url = Addresses.resolve().serve_url
        if urlsplit(url).hostname not in LOOPBACK_HOSTS:
            raise UserError(
                f"SEATRIAL_SERVE_URL: {url}: not on this machine: use `mlflow deployments create`"
            )
    SeatrialClient(TARGET).create_deployment(name, model_uri, flavor, config)


class SeatrialClient(BaseDeploymentClient):  # type: ignore[misc]
    """Deployments are services.

    Raises (every method):
        DeploymentError: bad input, no such thing, or a part that does not answer, as its error code says.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        with as_mlflow():
            if target_uri != TARGET:
                raise UserError(f"--target: {target_uri}: give `{TARGET}`; the environment says where it is")
        os.environ.update(direct_loopback(os.environ))

    def create_deployment(
        self, name: str, model_uri: str, flavor: Any = None, config: Any = None, endpoint: Any = None
    ) -> dict[str, Any]:
        """Deploy the service and make the model its champion."""
        with as_mlflow():
            _refuse(flavor, endpoint)
            found, options = Addresses.resolve(), Options.of(config)
            if options.alias not in (None, CHAMPION):
                raise UserError(
                    f"-C as: {options.alias}: a new deployment's model is its champion: leave it out"
                )
            version = _version(name, model_uri, found)
            if name in _services(found):
                raise DeploymentError(
                    f"{name}: deployed already: use `mlflow deployments update`, or delete it first",
                    error_code=codes.RESOURCE_ALREADY_EXISTS,
                )
            service = options.service(name)
            deploy.check(service, found, options.file or Path("-C"))
            promote.set_alias(name, version, CHAMPION, uri=found.mlflow_uri)
            row = deploy.put(service, found, now=time.time())
            _await_ready(name, row, found, options)
        return {"name": name, "flavor": FLAVOR}

    def update_deployment(
        self, name: str, model_uri: Any = None, flavor: Any = None, config: Any = None, endpoint: Any = None
    ) -> dict[str, Any]:
        """Change the service's configuration; open a trial of the model, or give it another alias."""
        with as_mlflow():
            _refuse(flavor, endpoint)
            found, options = Addresses.resolve(), Options.of(config)
            _service(name, found)
            if model_uri is None and options.alias is not None:
                raise UserError(f"--model-uri: missing: give the model that is to become {options.alias}")
            if model_uri is None and not options.is_about_service:
                raise UserError("--model-uri: missing: give a model, or fields of the service with -C")
            version = None if model_uri is None else _version(name, model_uri, found)
            if options.is_about_service:
                service = options.service(name, deploy.stored(name, found))
                deploy.check(service, found, options.file or Path("-C"))
                _await_ready(name, deploy.put(service, found, now=time.time()), found, options)
            if version is not None:
                promote.set_alias(name, version, options.alias or CHALLENGER, uri=found.mlflow_uri)
        return {"name": name, "flavor": FLAVOR}

    def delete_deployment(self, name: str, config: Any = None, endpoint: Any = None) -> None:
        """Take the service away; one that is not there needs nothing, as MLflow's contract asks."""
        with as_mlflow():
            _refuse(None, endpoint)
            found, options = Addresses.resolve(), Options.of(config)
            if name not in _services(found):
                return
            removal.mark(name, found, now=time.time())
            if options.wait:
                removal.await_gone(name, found, options.timeout_s, _silent)

    def list_deployments(self, endpoint: Any = None) -> list[dict[str, Any]]:
        """Every service: name, state and champion."""
        with as_mlflow():
            _refuse(None, endpoint)
            found = _services(Addresses.resolve())
        return [{key: each[key] for key in ("name", "state", "champion")} for each in found.values()]

    def get_deployment(self, name: str, endpoint: Any = None) -> dict[str, Any]:
        """One service: where it answers, how it is, whom it serves, what its latest trial came to."""
        with as_mlflow():
            _refuse(None, endpoint)
            found = Addresses.resolve()
            service = _service(name, found)
        trial = service["trial"] or {}
        shown = {key: service[key] for key in ("name", "state", "message", "champion", "aliases")}
        return {
            **shown,
            "flavor": FLAVOR,
            "url": _url(service, found),
            "trial": trial.get("id"),
            "verdict": trial.get("verdict"),
        }

    def predict(self, deployment_name: Any = None, inputs: Any = None, endpoint: Any = None) -> Any:
        """One answer for each row of ``inputs``: text, version, request_id."""
        with as_mlflow():
            _refuse(None, endpoint)
            found = Addresses.resolve()
            rows = rows_of(inputs)
            service = _service(deployment_name, found)
            answers = ask(deployment_name, _url(service, found), rows)
        return PredictionsResponse({"predictions": answers})


def _refuse(flavor: Any, endpoint: Any) -> None:
    if flavor not in (None, FLAVOR):
        raise UserError(
            f"--flavor: {flavor}: give none, or `{FLAVOR}`: versions say themselves what they are"
        )
    if endpoint is not None:
        raise UserError(f"--endpoint: {endpoint}: there are none here: every deployment has its own address")


def _version(name: str, model_uri: str, found: Addresses) -> str:
    """The version that the model names now; it must be one of the service's registered model."""
    from seatrial.registry import versions

    ref = versions.pin(model_uri, uri=found.mlflow_uri)
    if ref.name != name:
        raise UserError(
            f"--model-uri: {model_uri}: a service serves its own registered model: give models:/{name}/…"
        )
    return str(ref.version)


def _services(found: Addresses) -> dict[str, Mapping[str, Any]]:
    return {each["name"]: each for each in controller.status(found)["services"]}


def _service(name: str, found: Addresses) -> Mapping[str, Any]:
    services = _services(found)
    if name not in services:
        known = ", ".join(services) or "none"
        raise DeploymentError(
            f"{name}: not deployed (deployed: {known}): use `mlflow deployments create`",
            error_code=codes.RESOURCE_DOES_NOT_EXIST,
        )
    return services[name]


def _url(service: Mapping[str, Any], found: Addresses) -> str:
    return f"{found.serve_url}{service['route_prefix']}".rstrip("/")


def _await_ready(name: str, row: Mapping[str, Any], found: Addresses, options: Options) -> None:
    if options.wait:
        deploy.await_ready(name, row["updated_at"], found, options.timeout_s, _silent)


def _silent(_: str) -> None:
    """MLflow's commands print one line at their end."""
