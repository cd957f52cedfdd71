"""What a recipe would do, before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from seatrial.config.jobs import JobsConfig
from seatrial.errors import RetryableError, SeatrialError, UserError
from seatrial.monitoring.logs import cause

MODULE = "seatrial_jobs.plan"


def make_plan(recipe: Path, *, gpu_tflops: float) -> Mapping[str, object]:
    """Rows, tokens, steps, memory, time and digests, as `python -m seatrial_jobs.plan` says.

    It reads the data in a process of its own: the control plane loads no model library.

    Raises:
        UserError: bad or missing data, a base model that is not there; one line for each problem.
        RetryableError: the registry does not answer.
        SeatrialError: the planner ended in another way.
    """
    done = subprocess.run(
        [sys.executable, "-m", MODULE, str(recipe), "--gpu-tflops", str(gpu_tflops)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == UserError.exit_code and complaints:
        raise UserError("\n".join(complaints))
    if done.returncode == RetryableError.exit_code and complaints:
        raise RetryableError(complaints[-1])
    if done.returncode:
        raise SeatrialError(
            f"{recipe}: cannot be planned: {cause(complaints) or f'exit code {done.returncode}'}"
        )
    found = _last_object(done.stdout)
    if found is None:
        raise SeatrialError(
            f"{recipe}: {MODULE} printed no plan: {cause(done.stdout.splitlines()) or 'nothing'}"
        )
    return found


def digests(plan: Mapping[str, object]) -> Mapping[str, str]:
    """SHA-256 of the code, the configuration and the data."""
    found = plan.get("digests")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, Mapping) else {}


def rows(plan: Mapping[str, object], config: JobsConfig | None = None) -> list[tuple[str, str]]:
    """The plan as `name, value` pairs for people, in the order in which one asks.

    ``config`` has the price of a GPU-hour.
    """
    read, kept = plan.get("rows_read"), plan.get("rows_kept")
    shown = [
        ("data", f"{_count(kept)} of {_count(read)} rows kept, {_count(plan.get('heldout'))} held out"),
        ("tokens", f"{_count(plan.get('tokens'))} in the packed data"),
        ("steps", f"{_count(plan.get('steps'))} of {_count(plan.get('batch_tokens'))} tokens"),
        ("workers", f"{plan.get('workers')} on {plan.get('device')}"),
        ("parameters", f"{_count(plan.get('parameters'))}"),
    ]
    trials = plan.get("trials")
    is_search = isinstance(trials, int) and trials > 1
    if is_search:
        shown.insert(3, ("trials", _trials(plan)))
    if plan.get("cut_documents"):
        lost = f"{_count(plan.get('cut_tokens'))} tokens of {_count(plan.get('cut_documents'))} documents"
        shown.insert(2, ("cut", f"{lost} longer than run.seq_tokens"))
    shown += _memory(plan.get("memory"))
    host = plan.get("host_memory")
    if isinstance(host, int):
        shown.append(("host memory", f"{_size(host)} for each worker's checkpoints"))
    estimated, tflops = plan.get("estimated_s"), plan.get("gpu_tflops")
    if isinstance(estimated, int | float):
        assumed = f", at {tflops:g} TFLOP/s for each GPU (jobs.yaml: gpu_tflops)" if tflops else ""
        bound = " at most, one trial after the other" if is_search else ""
        shown.append(("estimated", f"{duration(float(estimated))}{bound}{assumed}"))
    hours = _gpu_hours(plan.get("gpu_hours"), config)
    shown += [(name, f"{value} at most" if is_search and value != "0" else value) for name, value in hours]
    return [(name, value) for name, value in shown if "None" not in value]


def _trials(plan: Mapping[str, object]) -> str:
    """How many, and how many steps they take together."""
    text = f"{plan.get('trials')}, at most {_count(plan.get('all_steps'))} steps in all"
    if plan.get("assumption"):
        text += f"; about {_count(plan.get('likely_steps'))} if {plan.get('assumption')}"
    at_a_time = plan.get("trials_at_a_time")
    if isinstance(at_a_time, int) and at_a_time > 1:
        text += f"; {at_a_time} at a time, each with workers of its own"
    return text


def _memory(found: object) -> list[tuple[str, str]]:
    if not isinstance(found, Mapping):
        return []
    parts = ", ".join(f"{name} {_size(value)}" for name, value in found.items() if value)
    return [("memory", f"{_size(sum(found.values()))} for each worker: {parts}")]


def _gpu_hours(hours: object, config: JobsConfig | None) -> list[tuple[str, str]]:
    if not isinstance(hours, int | float):
        return []
    price = config.gpu_hour_price if config else None
    cost = f", {hours * price:.2f} {config.currency}" if config and price is not None and hours else ""
    return [("GPU-hours", f"{hours:.2f}{cost}" if hours else "0")]


def _size(count: int) -> str:
    """`512 KiB`, `3.1 MiB` or `1.7 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _last_object(text: str) -> Mapping[str, object] | None:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None
