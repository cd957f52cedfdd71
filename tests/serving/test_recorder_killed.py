"""A process that is killed at any moment loses nothing that it had answered."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from seatrial.store import Store
from seatrial_serving.recorder import CUT, Recorder
from seatrial_serving.spool import Spool
from tests.serving.recording import endings, exposure, outcome, rows

WHOLE, BROKEN = (200, None), (500, CUT["error"])
CHILD = """
import asyncio, sys, json, os
from pathlib import Path
from seatrial_serving.recorder import Recorder
from seatrial.store import outcome_row
exposure = json.loads(sys.argv[2])
def connect():
    raise OSError("no store")
async def main():
    recorder = Recorder(Path(sys.argv[1]), connect, flush_s=0.01)
    recorder.start()
    number = 0
    while True:
        number += 1
        row = {**exposure, "request_id": f"r{number}"}
        recorder.opened(row)
        await recorder.outcomes([outcome_row("svc", f"r{number}", "resolved", 1.0, now=1.0)])
        print(number, flush=True)
        if number % 3:
            recorder.ended(row["request_id"])
        if number % 3 == 2:
            recorder.exposed(row)
asyncio.run(main())
"""


async def test_a_killed_process_loses_nothing_that_it_had_answered(tmp_path: Path, store: Store) -> None:
    spool = tmp_path / "spool"
    command = [sys.executable, "-c", CHILD, str(spool), json.dumps(exposure(0))]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(40)][-1]
    os.kill(child.pid, signal.SIGKILL)
    seen = max([seen, *(int(line) for line in child.stdout.read().split())])
    child.wait()
    child.stdout.close()

    recorder = Recorder(spool, lambda: store)
    assert recorder.replay_orphans() >= 2 * seen
    acknowledged = {f"r{number}" for number in range(1, seen + 1)}
    assert acknowledged <= set(rows(store, "outcomes"))
    told = endings(store)
    assert acknowledged <= told.keys(), "answers that had begun are on record too"
    for number in range(1, seen):  # of the last, the end may have been on record or not
        assert told[f"r{number}"] == (WHOLE if number % 3 else BROKEN)
    assert recorder.replay_orphans() == 0
    assert len(list(spool.iterdir())) == 1, "only the living one's file is left"


async def test_an_answer_is_on_record_at_every_moment_of_its_end(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread empties the file just before the last row comes, and the process dies in between."""
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder.opened(exposure(1))

    def dies(*_: object) -> None:
        recorder.flush()
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "append", dies)
        with pytest.raises(SystemExit):
            recorder.exposed(exposure(1))
    recorder._spool.close(delete=False)
    assert rows(store, "exposures") == []
    assert Recorder(tmp_path / "spool", lambda: store).replay_orphans() == 1
    assert rows(store, "exposures") == ["r1"]


async def test_that_an_answer_ended_outlives_the_files_replacement(tmp_path: Path, store: Store) -> None:
    """What is taken out of the file because the store has it leaves the open answers' records in it."""
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder._drop_at = 1
    for number in (1, 2, 3):
        recorder.opened(exposure(number))
    recorder.ended("r1")
    recorder.ended("r2")
    recorder.exposed(exposure(2))
    assert recorder.flush()
    assert recorder._offset == 0, "replaced"
    recorder._spool.close(delete=False)
    assert Recorder(tmp_path / "spool", lambda: store).replay_orphans() == 2
    assert endings(store) == {"r1": WHOLE, "r2": WHOLE, "r3": BROKEN}


async def test_a_spool_of_a_version_that_knows_other_records_is_read(tmp_path: Path, store: Store) -> None:
    kinds = {"t": "later", "request_id": "r1"}, {"request_id": "r2"}, {"t": "ended", "request_id": "r3"}
    lines = [*kinds, {"t": "opened", **exposure(4)}, {"t": "outcome", **outcome(4)}]
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "1-dead.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert Recorder(folder, lambda: store).replay_orphans() == 2
    assert (endings(store), rows(store, "outcomes")) == ({"r4": BROKEN}, ["r4"])


LOADED = """
import asyncio, sys, json, itertools
from pathlib import Path
from seatrial_serving.outcomes import accept
from seatrial_serving.recorder import Recorder, store_of
exposure = json.loads(sys.argv[2])
async def main():
    recorder = Recorder(Path(sys.argv[1]), lambda: store_of(sys.argv[3]), flush_s=0.001)
    recorder.start()
    numbers = itertools.count(1)
    async def call():
        for number in numbers:
            name = f"r{number}"
            recorder.exposed({**exposure, "request_id": name})
            await accept({"request_id": name, "metric": "resolved", "value": 1}, "svc", recorder)
            print(name, flush=True)
    await asyncio.gather(*(call() for _ in range(16)))
asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(6))
async def test_a_process_that_is_killed_under_load_keeps_what_it_answered_whatever_it_was_doing(
    tmp_path: Path, store: Store, seed: int
) -> None:
    moment_s = random.Random(seed).uniform(0.0, 0.6)  # noqa: S311  # a moment, no secret
    spool, url = tmp_path / "spool", str(store.engine.url)
    command = [sys.executable, "-c", LOADED, str(spool), json.dumps(exposure(0)), url]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    answered = {child.stdout.readline().strip()}
    asyncio.get_running_loop().call_later(moment_s, os.kill, child.pid, signal.SIGKILL)
    answered |= set((await asyncio.to_thread(child.stdout.read)).split("\n")[:-1])
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()

    recorder = Recorder(spool, lambda: store)
    recorder.replay_orphans()
    assert answered <= set(rows(store, "outcomes"))
    assert answered <= set(rows(store, "exposures"))
    assert len(rows(store, "outcomes")) == len(set(rows(store, "outcomes")))
    recorder.close()
