"""`make demo`: the whole loop on this machine, from nothing to a moved alias and a report."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from contextlib import closing
from types import FrameType
from typing import Any

from rich.console import Console

from demo.loop import FULL, SERVICE, Loop, Report
from demo.stack import REPOSITORY, CommandFailedError, Stack, down, up

WORK = REPOSITORY / "runs" / "demo"


def main() -> int:
    """Run the loop; exit code 0 when a version was promoted and no request failed."""
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(highlight=False)
    report = Report()
    started = time.monotonic()
    if WORK.exists():
        down(WORK)
        shutil.rmtree(WORK)
    WORK.mkdir(parents=True)
    try:
        with report.stage("up", "0  MLflow, Ray and the controller", console):
            stack = up(WORK)
        with closing(Loop(stack, FULL, report, console)) as loop:
            loop.run()
        report.values["seconds"]["total"] = round(time.monotonic() - started, 1)
        _finish(console, stack, report)
    except KeyboardInterrupt:
        console.print("\ninterrupted: ending everything that was started")
        return 130
    except (CommandFailedError, TimeoutError) as error:
        console.print(f"[red]demo stopped:[/red] {error}")
        return 1
    finally:
        down(WORK)
    return 0


def _finish(console: Console, stack: Stack, report: Report) -> None:
    path = WORK / "report.json"
    path.write_text(json.dumps(report.values, indent=2) + "\n", encoding="utf-8")
    values = report.values
    trial, serving = values["trial"], values["serving"]
    console.rule("[bold]Result", align="left")
    for job in values["jobs"]:
        scores = job["eval"]
        console.print(
            f"version {job['version']}: {job['steps']} steps, held-out loss {scores['loss']:.2f}, "
            f"exact match {scores['exact_match']:.0%}, ROUGE-L {scores['rouge_l']:.2f}"
        )
    champions = f"{values['champion_before']} → {values['champion_after']}"
    console.print(f"{serving['requests']} requests, {serving['failed']} failed")
    console.print(f"trial {trial['id']}: {trial['units']} units, {_lift(trial)}")
    console.print(f"verdict: [bold]{trial['verdict']}[/bold]; champion {champions}")
    console.print("The readers were simulated; the answers and their measured quality were not.")
    console.print(f"report: {path.relative_to(REPOSITORY)}, after {values['seconds']['total']:.0f} s\n")
    _look(console, stack, trial["id"])


def _lift(trial: dict[str, Any]) -> str:
    if trial["lift"] is None or trial["interval"] is None:
        return "lift undefined: the champion's mean is too near zero to be divided by"
    low, high = trial["interval"]
    return f"lift {trial['lift']:+.2f} in [{low:+.2f}, {high:+.2f}]"


def _look(console: Console, stack: Stack, trial_id: str) -> None:
    place = WORK.relative_to(REPOSITORY)
    here = f"source .venv/bin/activate && cd {place}"
    console.print(f"the trial      {stack.controller}/trials/{trial_id}")
    console.print(f"MLflow         {stack.mlflow}/#/models/{SERVICE}")
    console.print(f"Ray dashboard  {stack.dashboard}  (token: `seatrial env`, in {place})")
    console.print(f"service        {stack.service}/v1")
    body = json.dumps(
        {"model": SERVICE, "user": "me", "messages": [{"role": "user", "content": "Which module has deque?"}]}
    )
    curl = f"curl {stack.service}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
    console.print(f"\n{curl}", markup=False, soft_wrap=True)  # a line to copy
    if sys.stdout.isatty() and sys.stdin.isatty():
        console.print("\nEverything is still running; press Ctrl-C to end it.")
        signal.pause()
    else:
        console.print(f"\nThe stack ends now; `{here} && seatrial up` brings it back as it was.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
