"""The real `mlflow deployments` command line, a real MLflow server and the controller's own loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from seatrial.controller.api import build
from seatrial.controller.loop import Controller
from seatrial.registry import audit
from seatrial.registry.client import connect
from seatrial.store import Store
from tests.controller.one_replica import OneReplica
from tests.controller.server import serving

pytestmark = pytest.mark.slow
NAME = "plugin-chat"
KEY = "k" * 32


async def answer(request: Request) -> JSONResponse:
    """The OpenAI routes, by an engine that repeats what it hears."""
    if request.headers.get("authorization") != f"Bearer {KEY}":
        return JSONResponse({"error": {"message": "no such key"}}, status_code=401)
    body = await request.json()
    said = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    text = f"{body['model']}: {said}"
    choice = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    headers = {"x-seatrial-version": "1", "x-seatrial-request-id": "r1"}
    return JSONResponse({"choices": [choice]}, headers=headers)


class Stack:
    """What the command line finds through its environment."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.uri = uri
        self.folder = folder
        store_url = f"sqlite:///{folder / 'store.db'}"
        self.store = Store(store_url)
        self.serve = OneReplica(self.store)
        self.controller = Controller(self.store, self.serve, uri)  # type: ignore[arg-type]
        self.client = connect(uri)
        self.env = {**os.environ, "SEATRIAL_HOME": str(folder), "SEATRIAL_STORE_URL": store_url}
        self.env |= {"MLFLOW_TRACKING_URI": uri, "SEATRIAL_API_KEY": KEY}

    def version(self) -> str:
        run = self.client.create_run("0").info
        tags = {"seatrial.kind": "adapter", "seatrial.digest": "x"}
        source = f"{run.artifact_uri}/model"
        return str(self.client.create_model_version(NAME, source, run.run_id, tags=tags).version)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in found.items()}

    def mlflow(self, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "mlflow",
            "deployments",
            verb,
            "-t",
            "seatrial",
            *more,
        ]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)

    def does(self, verb: str, *more: str) -> str:
        done = self.mlflow(verb, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, verb: str, *more: str) -> str:
        done = self.mlflow(verb, *more)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        (line,) = [each for each in done.stderr.splitlines() if each.startswith("Error: ")]
        return line

    def until_trial(self, state: str) -> Any:
        deadline = time.monotonic() + 30
        while True:
            trial = self.store.latest_trial(NAME)
            if trial is not None and trial.state == state:
                return trial
            assert time.monotonic() < deadline, self.controller.report
            time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    made, stop = Stack(folder, mlflow_uri), threading.Event()
    made.client.create_registered_model(NAME)
    routes = [Route(f"/v1/{each}", answer, methods=["POST"]) for each in ("completions", "chat/completions")]
    loop = threading.Thread(target=made.controller.run, args=(stop,), kwargs={"poll_s": 0.2})
    with ExitStack() as open_:
        made.env["SEATRIAL_CONTROLLER_URL"] = open_.enter_context(serving(build(made.controller)))
        made.env["SEATRIAL_SERVE_URL"] = open_.enter_context(serving(Starlette(routes=routes)))
        loop.start()
        try:
            yield made
        finally:
            stop.set()
            made.controller.wake()
            loop.join(30)
            made.store.close()


def test_a_deployment_from_its_creation_to_its_deletion(stack: Stack):
    """One story, since each command takes seconds to start."""
    first, second, third = stack.version(), stack.version(), stack.version()
    stack.client.set_registered_model_alias(NAME, "champion", first)
    fields = ["-C", f"engine.base={stack.folder / 'base'}", "-C", "http.allow_anonymous=true"]
    file = stack.folder / "service.yaml"
    engine = f"engine: {{base: '{stack.folder / 'base'}', replicas: 1}}"
    file.write_text(f"name: {NAME}\n{engine}\nhttp: {{allow_anonymous: true}}\ntrial: {{alpha: 0.02}}\n")
    said = stack.does("create", "--name", NAME, "-m", f"models:/{NAME}@champion", "-C", f"config={file}")
    assert f"seatrial deployment {NAME} is created" in said
    assert stack.store.services()[NAME]["route_prefix"] == "/"
    assert NAME in stack.serve.deployed
    assert stack.store.services()[NAME]["config"]["trial"]["alpha"] == 0.02
    line = stack.refuses("create", "--name", NAME, "-m", f"models:/{NAME}@champion", *fields)
    assert line == f"Error: {NAME}: deployed already: use `mlflow deployments update`, or delete it first"

    assert f"'name': '{NAME}'" in stack.does("list")
    shown = stack.does("get", "--name", NAME).splitlines()
    assert f"champion: {first}" in shown
    assert f"url: {stack.env['SEATRIAL_SERVE_URL']}" in shown

    rows = stack.folder / "rows.json"
    rows.write_text(json.dumps([{"prompt": "Hello"}, {"messages": [{"role": "user", "content": "Bye"}]}]))
    said = stack.does("predict", "--name", NAME, "-I", str(rows))
    found = json.loads(said[said.index("{") :])["predictions"]
    assert [each["text"] for each in found] == [f"{NAME}: Hello", f"{NAME}: Bye"]
    assert found[0] == {"text": f"{NAME}: Hello", "version": "1", "request_id": "r1"}

    line = stack.refuses("update", "--name", NAME, "-m", f"models:/{NAME}/{second}", "-C", "as=winner")
    assert (
        line
        == "Error: -C as: winner: give challenger, challenger-b, champion or shadow, in at most 32 characters"
    )
    said = stack.does("update", "--name", NAME, "-m", f"models:/{NAME}/{second}")
    assert "(with flavor seatrial)" in said
    assert stack.aliases() == {"champion": first, "challenger": second}
    trial = stack.until_trial("open")
    stack.does("update", "--name", NAME, "-m", f"models:/{NAME}/{third}", "-C", "as=challenger-b")
    assert stack.aliases() == {"champion": first, "challenger": second, "challenger-b": third}

    said = stack.does("delete", "--name", NAME)
    assert f"Deployment {NAME} is deleted" in said
    assert stack.store.services() == {}
    assert stack.store.replicas(NAME) == []
    assert stack.serve.deployed == {}
    ended = stack.store.trial(trial.id)
    assert ended is not None
    assert (ended.state, ended.verdict, ended.reason) == ("closed", "superseded", "the service was deleted")
    record = audit.find(trial.id, uri=stack.uri)
    assert record is not None
    assert record.body["verdict"] == "superseded"
    assert stack.aliases() == {"champion": first, "challenger": second, "challenger-b": third}
    stack.does("delete", "--name", NAME)  # as MLflow's contract asks


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("get", "--name", "nobody"), "nobody: not deployed (deployed: none)"),
        (
            ("create", "--name", "else", "-m", f"models:/{NAME}/1"),
            "--model-uri: models:/plugin-chat/1: a service",
        ),
        (("create", "--name", NAME, "-m", f"models:/{NAME}/77"), f"models:/{NAME}/77"),
    ],
)
def test_what_cannot_be_done_is_one_line(stack: Stack, arguments: tuple[str, ...], said: str):
    stack.version()
    assert stack.refuses(*arguments).startswith(f"Error: {said}")


def test_help_names_the_options_and_a_local_run_needs_a_local_stack(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
):
    from seatrial.plugin import deployments

    assert "-C config=FILE" in deployments.target_help()
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEATRIAL_SERVE_URL", "http://serve.example:8000")
    with pytest.raises(deployments.DeploymentError, match="not on this machine") as caught:
        deployments.run_local(NAME, f"models:/{NAME}/1")
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_champion_is_made_and_configurations_changed_from_python(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
):
    from mlflow.deployments import get_deploy_client
    from mlflow.exceptions import MlflowException

    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    client = get_deploy_client("seatrial")
    first, second = stack.version(), stack.version()
    config = {"engine.base": str(stack.folder / "base"), "http.allow_anonymous": True}
    with pytest.raises(
        MlflowException, match="-C as: challenger-b: a new deployment's model is its champion"
    ):
        client.create_deployment(NAME, f"models:/{NAME}/{first}", config={**config, "as": "challenger-b"})
    client.create_deployment(NAME, f"models:/{NAME}/{first}", config=config)
    client.update_deployment(NAME, f"models:/{NAME}/{second}", config={"promote": True})
    assert stack.aliases()["champion"] == second
    with pytest.raises(
        MlflowException, match="--model-uri: missing: give the model that is to become shadow"
    ):
        client.update_deployment(NAME, config={"trial.alpha": 0.2, "as": "shadow"})
    client.update_deployment(NAME, config={"trial.alpha": 0.1})
    stored = stack.store.services()[NAME]["config"]
    assert (stored["trial"]["alpha"], stored["engine"]["base"]) == (0.1, config["engine.base"])
    monkeypatch.delenv("SEATRIAL_API_KEY")
    with pytest.raises(MlflowException, match="set SEATRIAL_API_KEY") as caught:
        client.predict(NAME, {"prompt": "Hello"})
    assert caught.value.error_code == "UNAUTHENTICATED"
    client.delete_deployment(NAME)
    assert client.list_deployments() == []
