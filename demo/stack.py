"""The demo's own stack, driven through the same commands that a person types."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
# Part → its usual port; another free one is taken when it is in use.
PORTS = {"mlflow": 5000, "dashboard": 8265, "serve": 8000, "controller": 8787, "ray": 6379}
# Seconds between the controller's looks: a demo's trial is over in seconds, and its picture needs some.
POLL_S = "0.5"
# Files of Ray whose log lines in the output of `ray job submit` say nothing about the job.
CHATTER = ("cli.py:", "job_manager.py:", "sdk.py:")


class CommandFailedError(Exception):
    """A command of the demo ended with an error; ``code`` is its exit code."""

    def __init__(self, command: list[str], code: int) -> None:
        self.code = code
        shown = " ".join([Path(command[0]).name, *command[1:]])
        super().__init__(f"`{shown}` ended with exit code {code}; its own message stands above")


@dataclass(frozen=True)
class Stack:
    """Where the parts of a running stack answer, and the environment that reaches them."""

    work: Path
    env: Mapping[str, str]
    mlflow: str
    dashboard: str
    service: str
    controller: str

    def run(self, *command: str) -> None:
        """Run a command in the work folder and let it print.

        Raises:
            CommandFailedError: it ended with another code than 0.
        """
        run(list(command), self.work, self.env)

    def submit(self, submission: str, *entrypoint: str) -> dict[str, dict[str, Any]]:
        """Plain `ray job submit`; the job's lines are printed, its events returned: name → last event.

        Raises:
            CommandFailedError: the job failed.
        """
        command = [tool("ray"), "job", "submit", "--submission-id", submission, "--", *entrypoint]
        _show(command)
        events: dict[str, dict[str, Any]] = {}
        with subprocess.Popen(
            command,
            cwd=self.work,
            env=dict(self.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in process.stdout or ():
                _, mark, event = line.partition("::seatrial:: ")
                if mark:
                    value = json.loads(event)
                    events[value["event"]] = value
                elif not any(name in line for name in CHATTER):
                    print(line, end="", flush=True)
        if process.returncode:
            raise CommandFailedError(command, process.returncode)
        return events


def run(command: list[str], cwd: Path, env: Mapping[str, str]) -> None:
    """Print a command as a person would type it, run it, and insist that it succeeds."""
    _show(command)
    code = subprocess.run(command, cwd=cwd, env=dict(env), check=False).returncode
    if code:
        raise CommandFailedError(command, code)


def _show(command: list[str]) -> None:
    print(f"$ {' '.join([Path(command[0]).name, *command[1:]])}", flush=True)


def tool(name: str) -> str:
    """A program of the environment that runs the demo."""
    return str(Path(sys.executable).parent / name)


def up(work: Path) -> Stack:
    """`seatrial up` in ``work``, on the usual ports where those are free."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    env = {key: value for key, value in env.items() if not _is_address(key)} | {"SEATRIAL_POLL_S": POLL_S}
    ports = {part: _free(port) for part, port in PORTS.items()}
    flags = [flag for part, port in ports.items() for flag in (f"--{part}-port", str(port))]
    run([tool("seatrial"), "up", *flags], work, env)
    printed = subprocess.run(
        [tool("seatrial"), "env", "--json"], cwd=work, env=env, check=True, capture_output=True
    )
    env |= json.loads(printed.stdout)
    return Stack(
        work=work,
        env=env,
        mlflow=env["MLFLOW_TRACKING_URI"],
        dashboard=env["RAY_API_SERVER_ADDRESS"],
        service=env["SEATRIAL_SERVE_URL"],
        controller=env["SEATRIAL_CONTROLLER_URL"],
    )


def down(work: Path) -> None:
    """`seatrial down`; whatever of the stack runs is ended."""
    subprocess.run([tool("seatrial"), "down"], cwd=work, check=False)


def _is_address(key: str) -> bool:
    return key.startswith(("SEATRIAL_", "RAY_", "MLFLOW_"))


def _free(port: int) -> int:
    for candidate in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no port is free in place of {port}")
