"""Exact resume: jobs of two workers that are killed at random moments, against one that nobody touches.

    python -m benchmarks.resume [--points 50] [--seed 0]

SIGKILL of one worker, of all workers, of the driver, and of all workers in the middle of a checkpoint, in
turn, ten in each job, at steps that the seed draws. Every second job keeps its checkpoints in an S3 server,
the first one where the seed is odd. After each kill the job must go on from the newest checkpoint whose
digests hold, with no more than one checkpoint lost; at its end it must have had one MLflow run in which no
step has two values, and the losses, rates, gradient norms and weights of the uninterrupted job of the same
recipe, bit for bit.

Prints one JSON line; exit code 1 when anything of this did not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.train_overhead import serve_mlflow
from tests.jobs import kills
from tests.jobs.job_processes import Cluster, S3Server, launch, lora_recipe, ray_cluster, write_data
from tests.tiny import make_base

STEPS, EVERY = 120, 8
A_JOB = 10


class Campaign:
    """Kills jobs by plan, and compares each with the uninterrupted one."""

    def __init__(self, cluster: Cluster, home: Path, s3: S3Server, seed: int) -> None:
        self.shots: list[kills.Shot] = []
        self.wrong: list[str] = []
        self.difference = 0.0
        self._cluster, self._home, self._s3, self._seed = cluster, home, s3, seed
        self._uri = cluster.environment["MLFLOW_TRACKING_URI"]
        self._recipe = inputs(home, max_failures=8 * A_JOB)

    def run(self, points: int) -> Iterator[None]:
        """All jobs, one after the other; a kill at a time."""
        plan = kills.plan(points, self._seed, steps=STEPS, every=EVERY, a_job=A_JOB)
        expected = self._uninterrupted()
        self.wrong += expected.wrong
        for number, job in enumerate(plan):
            with closing(self._victim(number)) as victim:
                for point in job:
                    self.shots += victim.kill(point)
                    yield
                trace = victim.finish(self._uri)
            difference, others = kills.difference(trace, expected)
            self.difference = max(self.difference, difference)
            self.wrong += [f"job {number}: {text}" for text in (*trace.wrong, *others)]
        self.wrong += [text for shot in self.shots for text in shot.wrong]

    def _uninterrupted(self) -> kills.Trace:
        place = self._home / "whole"
        place.mkdir()
        job = launch(self._cluster, stored_at(self._recipe, str(place / "kept")), place)
        assert job.wait() == 0, "\n".join(job.lines())
        return kills.trace_of(job, self._uri)

    def _victim(self, number: int) -> kills.Victim:
        place = self._home / f"job-{number}"
        place.mkdir()
        kept, storage = place / "kept", str(place / "kept")
        if (number + self._seed) % 2:
            kept, storage = self._home / "s3" / "bucket" / place.name, self._s3.uri(place.name)
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311
        return kills.Victim(self._cluster, stored_at(self._recipe, storage), kept, place, chance)


def main() -> None:
    """Kill, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seatrial-resume-") as name, ExitStack() as stack:
        home = Path(name)
        server, uri = serve_mlflow(home)
        stack.callback(server.wait, 30)
        stack.callback(server.terminate)
        s3 = S3Server(home / "s3")
        stack.callback(s3.stop)
        campaign = Campaign(stack.enter_context(ray_cluster(home, uri)), home, s3, options.seed)
        on_stderr = Console(stderr=True)
        for _ in track(campaign.run(options.points), "kills", total=options.points, console=on_stderr):
            pass
    print(json.dumps(figures(campaign)), flush=True)
    sys.exit(1 if campaign.wrong or campaign.difference else 0)


def inputs(home: Path, **run: Any) -> dict[str, Any]:
    """Write data and a base into ``home``; the recipe that uses them."""
    write_data(home)
    base = home / "base"
    base.mkdir()
    make_base(base, (home / "text.jsonl").read_text().splitlines())
    return lora_recipe(base, home, home / "kept", steps=STEPS, checkpoint_every=EVERY, **run)


def stored_at(recipe: dict[str, Any], storage: str) -> dict[str, Any]:
    """The recipe with its checkpoints elsewhere, which makes it no other job."""
    return {**recipe, "run": {**recipe["run"], "storage": storage}}


def figures(campaign: Campaign) -> dict[str, Any]:
    """The line: what was killed, and what it cost."""
    lost = [shot.done - shot.resumed for shot in campaign.shots]
    recovered = [shot.recover_s for shot in campaign.shots]
    return {
        "name": "resume",
        "kills": dict(Counter(shot.kind for shot in campaign.shots)),
        "checkpoint_every": EVERY,
        "steps_lost_mean": round(statistics.mean(lost), 2),
        "steps_lost_max": max(lost),
        "recover_s_median": round(statistics.median(recovered), 1),
        "recover_s_max": round(max(recovered), 1),
        "trace_difference": campaign.difference,
        "wrong": campaign.wrong,
    }


if __name__ == "__main__":
    main()
