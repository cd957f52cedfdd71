"""The main promise: an alias set in MLflow becomes a fair trial and, with the evidence in, a moved alias."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from demo.loop import SERVICE
from demo.stack import Stack, tool, up
from seatrial.registry.client import connect
from seatrial.stack import processes, state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent / "recipes"
ADDRESSES = ("SEATRIAL_", "RAY_", "MLFLOW_")
REPORT_KEYS = {
    "dataset": {"pairs_read", "pairs_kept", "digest"},
    "serving": {"requests", "failed", "swap_s"},
    "trial": {"id", "units", "exposures", "outcomes", "srm_p", "lift", "interval", "verdict"},
}


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.3)


def ask(stack: Stack, user: str, model: str = SERVICE) -> httpx.Response:
    body = {"model": model, "user": user, "max_tokens": 8, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "Which module has deque?"}]
    return httpx.post(f"{stack.service}/v1/chat/completions", json=body, timeout=60)


def seatrial(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    command = [tool("seatrial"), *words]
    return subprocess.run(
        command, cwd=stack.work, env=dict(stack.env), capture_output=True, text=True, check=False
    )


def part(stack: Stack, words: str) -> psutil.Process:
    """The process of this stack whose command line holds ``words``."""
    home = str(stack.work)
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if words in command and process.environ().get("SEATRIAL_HOME", "").startswith(home):
            return process
    raise LookupError(words)


def test_the_better_version_wins_and_the_report_says_how(finished):
    report = finished.report
    for section, keys in REPORT_KEYS.items():
        assert set(report[section]) == keys
    first, second = report["jobs"]
    assert second["eval"]["rouge_l"] > first["eval"]["rouge_l"]
    assert report["trial"]["verdict"] == "promote"
    assert (report["champion_before"], report["champion_after"]) == (first["version"], second["version"])
    assert finished.loop.aliases() == {"champion": second["version"], "previous": first["version"]}


def test_no_request_failed_and_every_answer_was_counted(finished):
    report = finished.report
    assert report["serving"]["failed"] == 0
    answered_in_trial = [reply for reply in finished.replies if reply.trial == report["trial"]["id"]]
    assert report["trial"]["exposures"] == len(answered_in_trial)
    assert report["trial"]["outcomes"] == len(answered_in_trial)
    assert report["trial"]["units"] == len({reply.unit for reply in answered_in_trial})


def test_a_user_saw_one_version_throughout_the_trial(finished):
    seen = defaultdict(set)
    for reply in finished.replies:
        if reply.trial:
            seen[reply.unit].add(reply.version)
    assert seen
    assert all(len(versions) == 1 for versions in seen.values())


def test_jobs_are_one_run_each_with_curve_digests_and_lineage(finished):
    client = connect(finished.stack.mlflow)
    for job in finished.report["jobs"]:
        run = client.get_run(job["run_id"])
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(job["run_id"], "train/loss")
        assert [point.step for point in history] == list(range(1, job["steps"] + 1))
        version = client.get_model_version(SERVICE, job["version"])
        assert version.run_id == job["run_id"]
        assert version.tags["seatrial.kind"] == "adapter"
        names = {item.path for item in client.list_artifacts(job["run_id"])}
        assert any(name.endswith(".png") for name in names)


def test_the_audit_record_is_an_mlflow_run(finished):
    client = connect(finished.stack.mlflow)
    experiment = client.get_experiment_by_name("seatrial-audit")
    (run,) = client.search_runs([experiment.experiment_id])
    trial = finished.report["trial"]["id"]
    assert trial in run.data.tags.values()
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert any(name.endswith(".json") for name in names)
    assert any(name.endswith(".png") for name in names)


def test_the_readmes_python_example_runs(finished, monkeypatch):
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    monkeypatch.setenv("SEATRIAL_SERVE_URL", finished.stack.service)
    names = {}
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102
    with names["client"]:
        assert names["answer"].choices[0].message.content


def test_replicas_listen_on_loopback_only(finished):
    running = state.read(finished.stack.work / ".seatrial")
    assert running is not None
    ours = {process.pid for process in processes.find(running)}
    listening = [
        c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in ours
    ]
    assert listening
    inside = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert [connection for connection in listening if connection.laddr.ip not in inside] == []


def test_answers_continue_without_controller_and_mlflow(finished):
    stack = finished.stack
    doomed = [part(stack, "seatrial.controller"), part(stack, "mlflow server")]
    for process in doomed:
        for each in [*process.children(recursive=True), process]:
            each.send_signal(signal.SIGKILL)
    answers = [ask(stack, f"alone-{number}") for number in range(10)]
    assert [answer.status_code for answer in answers] == [200] * 10
    running = state.read(stack.work / ".seatrial")
    status = seatrial(stack, "status")
    assert status.returncode != 0
    assert "mlflow" in status.stdout + status.stderr
    assert seatrial(stack, "down").returncode == 0
    assert running is not None
    assert processes.find(running) == []


def test_the_same_stack_comes_back_as_it_was(finished):
    stack = up(finished.stack.work)
    until(lambda: _answers(stack), timeout_s=240)
    champion = finished.report["champion_after"]
    assert ask(stack, "later").headers["x-seatrial-version"] == champion
    assert seatrial(stack, "rollback", SERVICE).returncode == 0
    before = finished.report["champion_before"]
    until(lambda: ask(stack, "later").headers["x-seatrial-version"] == before)


def test_the_readmes_commands_run_as_they_stand(finished):
    """In a folder with a smaller model's recipes under the README's names; it ends with `seatrial down`."""
    work = finished.stack.work
    (work / "demo").mkdir()
    (work / "recipes").mkdir()
    shutil.copy(HERE / "service.yaml", work / "demo" / "service.yaml")
    shutil.copy(HERE / "base.yaml", work / "recipes" / "pretrain_tiny_cpu.yaml")
    shutil.copy(HERE / "first.yaml", work / "recipes" / "lora_short_tiny_cpu.yaml")
    shutil.copy(HERE / "second.yaml", work / "recipes" / "lora_tiny_cpu.yaml")
    (work / ".venv").symlink_to(sys.prefix)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    script = "\n".join(block for block in blocks if not block.startswith("make"))
    env = {key: value for key, value in os.environ.items() if not key.startswith(ADDRESSES)}
    running = state.read(work / ".seatrial")
    done = subprocess.run(
        ["bash", "-eux", "-o", "pipefail", "-c", script],
        cwd=work, env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for said in ("registered", "serving: version", '"model":"stdlib-helper@', "challenger 2"):
        assert said in done.stdout
    assert running is not None
    assert processes.find(running) == []


def _answers(stack: Stack) -> bool:
    try:
        return ask(stack, "probe").status_code == 200
    except httpx.TransportError:
        return False
