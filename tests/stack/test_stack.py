"""The local stack with its real parts: up, looked at, damaged, used, and down again."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from seatrial.config.addresses import Addresses
from seatrial.registry.client import connect
from seatrial.stack import ports
from seatrial.submission import submit as submitting
from seatrial.submission.events import Event
from seatrial.submission.follow import Ending, follow, may_be_tried_again

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

COMMAND = [sys.executable, "-m", "seatrial.cli.main"]
PARTS = ("mlflow", "ray", "dashboard", "serve", "controller")


def clean_environment() -> dict[str, str]:
    foreign = ("SEATRIAL_", "RAY_", "MLFLOW_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def flags(chosen: Mapping[str, int]) -> list[str]:
    return [part for name, port in chosen.items() for part in (f"--{name}-port", str(port))]


def choose_ports() -> dict[str, int]:
    return dict(zip(PARTS, ports.inner(len(PARTS), ports.Ports()), strict=True))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def recorded(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ".seatrial" / "stack.json").read_text())
    return found


def left_over(state: Mapping[str, Any]) -> list[str]:
    """Command lines of what still runs, found in another way than `seatrial down` finds it."""
    sessions = {member["pid"] for member in state["members"]}
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            is_ours = os.getsid(process.pid) in sessions or state["folder"] in line
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
        except (psutil.Error, OSError):
            continue
    return found


def listeners(chosen: Mapping[str, int]) -> list[str]:
    return [name for name, port in chosen.items() if not ports.is_free(port)]


@dataclass(frozen=True)
class Stack:
    folder: Path
    ports: Mapping[str, int]
    started_s: float

    @property
    def addresses(self) -> Addresses:
        return Addresses.resolve({}, self.folder)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    chosen = choose_ports()
    began = time.monotonic()
    done = run(folder, "up", *flags(chosen), "--ray-cpus", "4")
    assert done.returncode == 0, done.stderr
    state = recorded(folder)
    yield Stack(folder, chosen, time.monotonic() - began)
    run(folder, "down")
    assert left_over(state) == []


def test_every_part_answers_once_it_is_up(stack: Stack) -> None:
    done = run(stack.folder, "status")
    assert done.returncode == 0, done.stdout
    rows = [line.split("\t")[:2] for line in done.stdout.splitlines() if "\t" in line]
    assert rows == [["mlflow", "running"], ["ray", "running"], ["controller", "running"]]
    assert done.stdout.splitlines()[-1] == "services: none deployed"
    print(f"up took {stack.started_s:.1f} s")


def test_up_a_second_time_says_so_and_starts_nothing(stack: Stack) -> None:
    before = recorded(stack.folder)
    done = run(stack.folder, "up", *flags(stack.ports))
    assert done.returncode == 0
    assert done.stdout.startswith("already up in ")
    assert recorded(stack.folder) == before


def test_secrets_are_for_their_owner_only_and_never_printed(stack: Stack) -> None:
    home = stack.folder / ".seatrial"
    names = ("ray_token", "webhook_secret", "mlflow_webhook_key")
    for name in ("stack.json", *names):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    secrets = [(home / name).read_text() for name in names]
    assert [len(secret) for secret in secrets] == [64, 64, 44]
    printed = run(stack.folder, "env").stdout + run(stack.folder, "status").stdout
    for file in (home / "stack.json", *(home / "logs").glob("*.log")):
        printed += file.read_text(errors="replace")
    assert not [secret for secret in secrets if secret in printed]


def test_mlflow_hints_the_controller_that_registered_itself(stack: Stack) -> None:
    client, url = connect(stack.addresses.mlflow_uri), f"{stack.addresses.controller_url}/hooks/mlflow"
    deadline = time.monotonic() + 30
    while not (found := client.list_webhooks()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [webhook.url for webhook in found] == [url]
    answer = client.test_webhook(found[0].webhook_id)
    assert (answer.success, answer.response_status) == (True, 204)


def test_ray_asks_for_its_token(stack: Stack) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{stack.addresses.ray_dashboard}/api/jobs/")
    with caught.value as refused:
        assert refused.code == 401


def test_everything_listens_on_loopback(stack: Stack) -> None:
    sessions = {member["pid"] for member in recorded(stack.folder)["members"]}
    open_to_others = []
    for connection in psutil.net_connections("inet"):
        if connection.status != psutil.CONN_LISTEN or connection.pid is None:
            continue
        try:
            is_ours = os.getsid(connection.pid) in sessions
        except OSError:
            continue
        if is_ours and connection.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            open_to_others.append(connection)
    assert open_to_others == []


def test_the_environment_reaches_every_part(stack: Stack) -> None:
    found = json.loads(run(stack.folder, "env", "--json").stdout)
    assert Addresses.resolve(found, Path("/")) == stack.addresses
    assert found["RAY_AUTH_MODE"] == "token"
    shell = f'{run(stack.folder, "env").stdout}\nprintf %s "$MLFLOW_TRACKING_URI"'
    printed = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert printed.stdout == stack.addresses.mlflow_uri


def test_ports_that_the_stack_holds_are_refused_to_a_second_one(stack: Stack, tmp_path: Path) -> None:
    done = run(tmp_path, "up", *flags({**choose_ports(), "mlflow": stack.ports["mlflow"]}))
    assert done.returncode == 2
    assert done.stderr.startswith(f"--mlflow-port: {stack.ports['mlflow']}: the port is in use by `")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".seatrial" / "stack.json").exists()


def submit_script(stack: Stack, name: str, script: str) -> tuple[Ending, list[Event | str]]:
    """Run a Python script as a job in the stack, from the stack's folder."""
    (stack.folder / f"{name}.py").write_text(script)
    client = submitting.connect(stack.addresses)
    submission_id = submitting.submission_id(name, time.time())
    job = submitting.Job(submission_id, f"{sys.executable} {name}.py", {}, {"seatrial.job": name})
    said: list[Event | str] = []
    return follow(client, submitting.submit(client, job), said.append), said


def test_a_job_sees_the_stack_and_is_followed_to_its_end(stack: Stack) -> None:
    script = """
import os, ray
print('::seatrial:: {"event": "run", "url": "http://x/#/experiments/1/runs/2"}', flush=True)
ray.init()
where = ray.get(ray.remote(lambda: (os.environ["MLFLOW_TRACKING_URI"], os.getcwd())).remote())
print("found", *where)
"""
    ending, said = submit_script(stack, "looks", script)
    assert ending.status == "SUCCEEDED"
    assert Event("run", {"url": "http://x/#/experiments/1/runs/2"}) in said
    assert f"found {stack.addresses.mlflow_uri} {stack.folder}" in said


def test_a_failed_job_names_its_cause_and_keeps_its_exit_code(stack: Stack) -> None:
    line = "recipe.yaml:3: run.steps: 0: should be greater than 0"
    ending, _ = submit_script(stack, "fails", f"import sys; print({line!r}, file=sys.stderr); sys.exit(2)")
    assert (ending.status, ending.exit_code, ending.why) == ("FAILED", 2, line)
    assert not may_be_tried_again(ending)


def test_a_killed_driver_may_be_tried_again(stack: Stack) -> None:
    ending, _ = submit_script(stack, "killed", "import os; os.kill(os.getpid(), 9)")
    assert ending.status == "FAILED"
    assert "killed" in ending.why
    assert may_be_tried_again(ending)


def test_a_part_that_was_killed_is_named_with_its_cause_and_the_stack_ends_clean(stack: Stack) -> None:
    state = recorded(stack.folder)
    members = {member["name"]: member for member in state["members"]}
    for process in psutil.Process(members["mlflow"]["pid"]).children(recursive=True):
        process.kill()
    psutil.Process(members["mlflow"]["pid"]).kill()
    done = run(stack.folder, "status")
    assert done.returncode == 1
    assert "mlflow\tended" in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("mlflow: ")]
    assert len(told) == 1
    assert f"process {members['mlflow']['pid']} is gone" in told[0]
    assert "was it killed?" in told[0]
    assert "mlflow.log" in told[0]
    again = run(stack.folder, "up", *flags(stack.ports))
    assert again.returncode == 2
    assert "still runs from before: `seatrial down` first" in again.stderr
    began = time.monotonic()
    ended = run(stack.folder, "down")
    print(f"down took {time.monotonic() - began:.1f} s: {ended.stdout.strip()}")
    assert ended.returncode == 0, ended.stderr
    assert left_over(state) == []
    assert listeners(stack.ports) == []
    assert not Path(state["folder"]).exists()
    kept = stack.folder / ".seatrial" / "logs" / "ray"
    assert (kept / "raylet.out").is_file()
    assert list(kept.glob("job-driver-looks-*.log")), "what a job said outlives the stack"
    assert f"jobs and replicas: {kept}" in ended.stdout
    assert not (stack.folder / ".seatrial" / "stack.json").exists()
    assert run(stack.folder, "down").stdout.startswith("nothing was up in ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_starting_nothing_is_left(tmp_path: Path, number: signal.Signals) -> None:
    chosen = choose_ports()
    with subprocess.Popen(
        [*COMMAND, "up", *flags(chosen)],
        cwd=tmp_path,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as starting:
        state = wait_for_members(tmp_path, 3)
        time.sleep(2 if number is signal.SIGINT else 0)
        starting.send_signal(number)
        _, said = starting.communicate(timeout=60)
        assert starting.returncode == 130
    assert said.strip() == "interrupted: everything that was started is ended"
    assert left_over(state) == []
    assert listeners(chosen) == []
    assert not Path(state["folder"]).exists()
    assert not (tmp_path / ".seatrial" / "stack.json").exists()


def wait_for_members(folder: Path, count: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / ".seatrial" / "stack.json").exists():
            state = recorded(folder)
            if len(state["members"]) == count:
                return state
        time.sleep(0.02)
    raise TimeoutError("the parts were not started")


def test_a_starter_that_was_killed_leaves_a_stack_that_down_ends(tmp_path: Path) -> None:
    chosen = choose_ports()
    with subprocess.Popen(
        [*COMMAND, "up", *flags(chosen)], cwd=tmp_path, env=clean_environment()
    ) as starting:
        state = wait_for_members(tmp_path, 3)
        starting.kill()
    ended = run(tmp_path, "down")
    assert ended.returncode == 0, ended.stderr
    assert left_over(state) == []
    assert listeners(chosen) == []


def test_a_part_that_cannot_start_takes_everything_down_and_says_why(tmp_path: Path) -> None:
    chosen = choose_ports()
    env = {**clean_environment(), "SEATRIAL_POLL_S": "nonsense"}
    done = subprocess.run(
        [*COMMAND, "up", *flags(chosen)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "controller: ended with exit code 2" in done.stderr
    assert "SEATRIAL_POLL_S: nonsense" in done.stderr
    assert listeners(chosen) == []
    assert not (tmp_path / ".seatrial" / "stack.json").exists()


def test_a_stale_state_file_of_a_dead_stack_is_cleaned(tmp_path: Path) -> None:
    """The parts are gone without `seatrial down`, as after a restart of the machine."""
    home = tmp_path / ".seatrial"
    home.mkdir()
    folder = Path(os.fspath(tmp_path)) / "seatrial-gone"
    folder.mkdir()
    dead = {"name": "ray", "pid": 2**22 - 1, "boot": "", "started": 1, "log": "", "url": ""}
    values = {"mark": "m", "phase": "up", "owner": dead, "folder": str(folder), "members": [dead]}
    values["addresses"] = Addresses.resolve({}, tmp_path).values()
    (home / "stack.json").write_text(json.dumps(values))
    assert run(tmp_path, "down").returncode == 0
    assert not folder.exists()
    assert not (home / "stack.json").exists()


def test_two_starts_at_once_are_one_start(tmp_path: Path) -> None:
    chosen = choose_ports()
    first = subprocess.Popen(
        [*COMMAND, "up", *flags(chosen)], cwd=tmp_path, env=clean_environment(), stderr=subprocess.DEVNULL
    )
    with first:
        wait_for_members(tmp_path, 3)
        second = run(tmp_path, "up", *flags(choose_ports()))
        assert second.returncode == 2
        assert "another `seatrial up` is starting it" in second.stderr
        # `down` ends a start that is under way.
        assert run(tmp_path, "down").returncode == 0
        assert first.wait(30) == 130
    assert listeners(chosen) == []


def test_a_taken_port_is_not_mistaken_for_a_part(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run(tmp_path, "up", *flags({**choose_ports(), "serve": port}))
    assert done.returncode == 2
    assert f"--serve-port: {port}" in done.stderr
