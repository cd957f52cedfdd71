"""More of the queue with a real stack: a search, a folder that travels, nodes and drivers that are lost."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest
import yaml
from real import Stack, environment, wait_for, write_recipe

from seatrial.registry import runs, versions
from seatrial.stack.parts import loopback_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

OTHER_NODE = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams
# `ray start` refuses a second node on loopback, which is where the stack's cluster is.
settings = {"num_cpus": 1, "num_gpus": 0, "resources": {"other": 1}, "object_store_memory": 100_000_000}
ports = {"min_worker_port": 0, "max_worker_port": 0}
Node(RayParams(gcs_address=sys.argv[1], node_ip_address="127.0.0.1", **settings, **ports), head=False)
time.sleep(600)
"""
ON_THE_OTHER_NODE = """
import pathlib, time, ray
ray.init(log_to_driver=False)
mark = pathlib.Path("node").absolute()
is_first = not mark.exists()

@ray.remote(max_retries=0, num_cpus=0, resources={"other": 1} if is_first else {})
def work():
    mark.write_text("reached")
    time.sleep(600 if is_first else 0)

ray.get(work.remote())
"""
STAYS_THE_FIRST_TIME = """
import os, pathlib, time
mark = pathlib.Path("pid")
is_first = not mark.exists()
mark.write_text(str(os.getpid()))
time.sleep(600 if is_first else 0)
"""


def attempts(stack: Stack, job_id: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(stack.run("jobs", "show", job_id, "--json").stdout)["attempts"]
    return found


def test_a_job_whose_node_dies_is_tried_again(stack: Stack) -> None:
    found = stack.addresses
    assert found.ray_address is not None
    command = [sys.executable, "-c", OTHER_NODE, found.ray_address]
    env = {**environment(), "RAY_AUTH_MODE": "token", **loopback_environment()}
    env["RAY_AUTH_TOKEN_PATH"] = str(found.ray_token_path)
    with (stack.logs / "node.log").open("wb") as log:
        node = psutil.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        job_id = stack.submit("node-dies", ON_THE_OTHER_NODE)
        wait_for((stack.folder / "node").exists, 90)
    finally:
        for process in [*node.children(recursive=True), node]:  # as when its machine is gone
            process.kill()
        node.wait(10)
    ended = stack.ended(job_id, 180)
    assert (ended.state, ended.attempt) == ("succeeded", 1), ended
    assert attempts(stack, job_id)[0]["cause"], "the first one says why it ended"


def test_a_job_whose_driver_goes_with_its_node_is_tried_again(stack: Stack) -> None:
    job_id = stack.submit("driver-dies", STAYS_THE_FIRST_TIME)
    wait_for(lambda: (stack.folder / "pid").exists() and (stack.folder / "pid").read_text() != "", 60)
    driver = psutil.Process(int((stack.folder / "pid").read_text()))
    supervisor = next(each for each in driver.parents() if "JobSupervisor" in " ".join(each.cmdline()))
    supervisor.kill()
    driver.kill()
    ended = stack.ended(job_id, 180)
    assert (ended.state, ended.attempt) == ("succeeded", 1), ended
    assert attempts(stack, job_id)[0]["cause"], "the first one says why it ended"


@pytest.mark.soak
def test_a_search_as_a_plain_command_goes_through_the_queue_in_a_folder_that_travels(stack: Stack) -> None:
    folder = stack.folder / "code"
    folder.mkdir()
    write_recipe(folder, 20)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe |= {"name": "join-search", "service": "join-search"}
    recipe["run"] |= {"evaluate_every": 10, "storage": str(stack.folder / "searches")}
    rates = {"type": "choice", "values": [1e-2]}
    recipe["search"] = {"space": {"run.learning_rate": rates}, "algorithm": {"type": "grid"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ("--", "python", "-m", "seatrial_jobs.tune", "recipe.yaml")
    done = stack.run("jobs", "submit", "--upload", *command, below="code")
    assert done.returncode == 0, done.stdout + done.stderr

    (job_id,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("queued "))
    job = stack.job(job_id)
    assert job.spec.package is not None
    assert str(folder) not in job.spec.entrypoint, "it ran in the copy that had travelled"
    uri, run_id = stack.addresses.mlflow_uri, job.result["run_id"]
    name, version = job.result["version"].removeprefix("models:/").split("/")
    tags = versions.describe(name, version, uri=uri).tags
    assert (name, tags["seatrial.search.parent_run"]) == ("join-search", run_id)
    assert (tags["seatrial.search.trial"], tags["seatrial.search.trials"]) == ("1", "1")
    assert runs.tags_of(run_id, uri=uri)[runs.SUBMISSION_ID] == job.ray_id
