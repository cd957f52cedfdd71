"""The whole loop, stage by stage, against real parts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from demo.readers import Question, Readers, Reply
from demo.stack import REPOSITORY, Stack, tool
from seatrial.store import Store

SERVICE = "stdlib-helper"
WAVE_UNITS = 40
POLL_S = 0.25
SETTLE_S = 30.0


@dataclass(frozen=True)
class Scale:
    """How much of everything a run does; recipes are files, paths are from the repository's root."""

    base: Path
    first: Path
    second: Path
    service: Path = REPOSITORY / "demo" / "service.yaml"
    most_units: int = 2000
    verdict_timeout_s: float = 120.0


FULL = Scale(
    base=REPOSITORY / "recipes" / "pretrain_tiny_cpu.yaml",
    first=REPOSITORY / "recipes" / "lora_short_tiny_cpu.yaml",
    second=REPOSITORY / "recipes" / "lora_tiny_cpu.yaml",
)


@dataclass
class Report:
    """What `report.json` holds, filled stage by stage."""

    values: dict[str, Any] = field(default_factory=lambda: {"jobs": [], "seconds": {}})

    @contextmanager
    def stage(self, name: str, title: str, console: Console) -> Iterator[None]:
        """Time one stage and say what it is."""
        console.rule(f"[bold]{title}", align="left")
        start = time.monotonic()
        yield
        self.values["seconds"][name] = round(time.monotonic() - start, 1)


class Loop:
    """One run of the demo on a stack that is up."""

    def __init__(self, stack: Stack, scale: Scale, report: Report, console: Console) -> None:
        self._stack, self._scale, self._report, self._console = stack, scale, report, console
        self._mlflow = httpx.Client(base_url=f"{stack.mlflow}/api/2.0/mlflow", timeout=30)

    def close(self) -> None:
        """Close the connection to MLflow."""
        self._mlflow.close()

    def run(self) -> None:
        """Every stage in order."""
        stage = self._report.stage
        with stage("data", "1  Data from the standard library's documentation", self._console):
            self._data()
        with stage("base", "2  A base model, trained from nothing", self._console):
            self._job(self._scale.base, "pretrain")
        with stage("short", "3  A first fine-tune, deliberately short", self._console):
            first = self._job(self._scale.first, "train")
        with stage("deploy", "4  Version 1 becomes the champion and is deployed", self._console):
            self._set_alias("champion", first)
            self._stack.run(tool("seatrial"), "deploy", str(self._scale.service))
        with stage("long", "5  A second fine-tune, while the first one serves", self._console):
            second = self._job(self._scale.second, "train")
        with stage("trial", "6  Version 2 becomes the challenger: live traffic is split", self._console):
            asyncio.run(self._trial(first, second))

    def _data(self) -> None:
        self._stack.run(tool("seatrial"), "data", "stdlib-docs", "runs/data/stdlib.jsonl")

    def _job(self, recipe: Path, module: str) -> str:
        """Submit one recipe with plain `ray job submit` and return the version that it registered."""
        submission = f"demo-{recipe.stem.replace('_', '-')}"
        events = self._stack.submit(submission, "python", "-m", f"seatrial_jobs.{module}", str(recipe))
        version = str(events["registered"]["version"])
        if module == "train":
            self._report.values["jobs"].append(self._job_row(submission, events, version))
        return version

    def _job_row(self, submission: str, events: dict[str, dict[str, Any]], version: str) -> dict[str, Any]:
        run = self._get("runs/get", run_id=events["run"]["run_id"])["run"]
        metrics, tags, params = (
            {row["key"]: row["value"] for row in run["data"][part]} for part in ("metrics", "tags", "params")
        )
        self._report.values["dataset"] = {
            "pairs_read": events["plan"]["rows_read"],
            "pairs_kept": events["plan"]["rows_kept"],
            "digest": tags["seatrial.data_digest"],
        }
        return {
            "submission_id": submission,
            "run_id": run["info"]["run_id"],
            "version": version,
            "method": params["method.type"],
            "steps": events["plan"]["steps"],
            "tokens_per_s": round(metrics["train/tokens_per_s"], 1),
            "eval": {name: round(metrics[f"eval/{name}"], 4) for name in ("loss", "exact_match", "rouge_l")},
        }

    def _set_alias(self, alias: str, version: str) -> None:
        """The same call that MLflow's UI makes when a person picks an alias."""
        self._console.print(f"POST …/registered-models/alias  {SERVICE}@{alias} = {version}", highlight=False)
        body = {"name": SERVICE, "alias": alias, "version": version}
        self._mlflow.post("/registered-models/alias", json=body).raise_for_status()

    def aliases(self) -> dict[str, str]:
        """Alias → version, as MLflow has it now."""
        model = self._get("registered-models/get", name=SERVICE)["registered_model"]
        return {row["alias"]: row["version"] for row in model.get("aliases", [])}

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._mlflow.get(f"/{path}", params=query).raise_for_status().json()
        return answer

    async def _trial(self, first: str, second: str) -> None:
        readers = Readers(self._stack.service, SERVICE, _questions(self._stack.work))
        try:
            before = self.aliases().get("champion")
            started = time.monotonic()
            self._set_alias("challenger", second)
            await self._ask_until(readers, "warm", lambda reply: reply.version == second)
            swap_s = time.monotonic() - started
            self._console.print(f"first answer from version {second} after {swap_s:.1f} s", highlight=False)
            await self._ask_until_decided(readers)
            await self._ask_until(readers, "after", self._is_champions)
            counts = await self._settled(readers)
        finally:
            await readers.close()
        self._write(readers, counts, before, swap_s)

    def _is_champions(self, reply: Reply) -> bool:
        return not reply.trial and reply.version == self.aliases()["champion"]

    async def _ask_until(self, readers: Readers, prefix: str, is_there: Callable[[Reply], bool]) -> None:
        """Keep asking with new units until a reply satisfies ``is_there``."""
        deadline = time.monotonic() + self._scale.verdict_timeout_s
        number = 0
        while time.monotonic() < deadline:
            replies = await readers.ask_many([f"{prefix}-{number + each}" for each in range(4)])
            number += 4
            if any(is_there(reply) for reply in replies):
                return
            await asyncio.sleep(POLL_S)
        raise TimeoutError(f"no such answer within {self._scale.verdict_timeout_s} s: see `seatrial status`")

    async def _ask_until_decided(self, readers: Readers) -> None:
        """Waves of distinct readers until the controller has a verdict or the readers run out."""
        columns = (TextColumn("readers"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("", total=self._scale.most_units)
            for start in range(0, self._scale.most_units, WAVE_UNITS):
                await readers.ask_many([f"reader-{start + number}" for number in range(WAVE_UNITS)])
                trial = self.trial()
                progress.update(task, advance=WAVE_UNITS, description=_glance(trial))
                if trial.get("verdict"):
                    return
        await self._wait_for_verdict()

    async def _wait_for_verdict(self) -> None:
        deadline = time.monotonic() + self._scale.verdict_timeout_s
        while not self.trial().get("verdict"):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no verdict after {self._scale.most_units} readers: {_glance(self.trial())}"
                )
            await asyncio.sleep(POLL_S)

    def trial(self) -> dict[str, Any]:
        """The controller's summary of the service's latest trial."""
        status = httpx.get(f"{self._stack.controller}/status", timeout=10).raise_for_status().json()
        return next(row["trial"] or {} for row in status["services"] if row["name"] == SERVICE)

    async def _settled(self, readers: Readers) -> dict[str, int]:
        """Units, exposures and outcomes of the trial in the store, once the replica's last batch is there."""
        answered = sum(1 for reply in readers.replies if reply.trial and not reply.error)
        store = Store(self._stack.env["SEATRIAL_STORE_URL"])
        deadline = time.monotonic() + SETTLE_S
        try:
            while True:
                trial = store.latest_trial(SERVICE)
                if trial is None:
                    raise TimeoutError(f"the store holds no trial of {SERVICE}: see `seatrial status`")
                evidence = store.evidence(trial, now=time.time())
                exposures = sum(arm.exposures for arm in evidence.arms)
                outcomes = sum(arm.outcomes for arm in evidence.arms)
                if (exposures, outcomes) == (answered, readers.outcomes) or time.monotonic() > deadline:
                    return {"units": evidence.units, "exposures": exposures, "outcomes": outcomes}
                await asyncio.sleep(POLL_S)
        finally:
            store.close()

    def _write(self, readers: Readers, counts: dict[str, int], before: str | None, swap_s: float) -> None:
        trial = self.trial()
        failed = sum(1 for reply in readers.replies if reply.error)
        decided = {key: trial[key] for key in ("srm_p", "lift", "interval", "verdict")}
        self._report.values |= {
            "serving": {"requests": len(readers.replies), "failed": failed, "swap_s": round(swap_s, 2)},
            "trial": {"id": trial["id"], **counts, **decided},
            "champion_before": before,
            "champion_after": self.aliases().get("champion"),
        }
        self.replies = readers.replies


def _questions(work: Path) -> list[Question]:
    lines = (work / "runs/data/stdlib.heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Question(row["prompt"], row["response"]) for row in rows]


def _glance(trial: dict[str, Any]) -> str:
    interval = trial.get("interval")
    shown = f"lift in [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "collecting"
    return f"{shown}  {trial.get('verdict') or trial.get('waiting_for') or ''}"
