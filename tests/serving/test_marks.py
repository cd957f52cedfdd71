"""What has ended the process that loaded it is not loaded again, until somebody asks for it anew."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seatrial_serving import marks
from seatrial_serving.marks import Mark, Marks
from tests.serving.test_adapters import World

DIGEST = "d" * 64
REFUSED = "error: loading it ended the process twice: look at that replica's log (process "
CHILD = """
import asyncio, json, sys
from pathlib import Path
from tests.serving.test_adapters import World
slow = sys.argv[2]

async def main():
    world = World(Path(sys.argv[1]))
    load = world.engine.load
    async def hang(version, folder):
        if version != slow:
            return await load(version, folder)
        print("loading", flush=True)
        await asyncio.Event().wait()
    world.engine.load = hang
    await world.loader.reconfigure(json.loads(sys.argv[3]))

asyncio.run(main())
"""
Loading = Callable[[World, str, dict[str, Any]], "subprocess.Popen[str]"]


def config(revision: str, *preload: dict[str, Any], champion: str = "6") -> dict[str, Any]:
    traffic = {"aliases": {"champion": champion}}
    return {"service": "svc", "revision": revision, "preload": list(preload), "traffic": traffic}


@pytest.fixture
def loading() -> Iterator[Loading]:
    """A process that is in the middle of loading a version."""
    children = []

    def start(world: World, version: str, told: dict[str, Any]) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(world.cache), version, json.dumps(told)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "loading\n"
        return child

    yield start
    for child in children:
        end(child)


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def end_twice(loading: Loading, world: World, version: str, told: dict[str, Any]) -> None:
    for _ in range(2):
        end(loading(world, version, told))


def left(world: World) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (world.cache / ".loading" / "svc").glob("*"))


def again(world: World) -> World:
    """The replica that takes the dead one's place."""
    return World(world.cache)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_challenger_whose_process_was_killed_is_not_loaded_again(
    world: World, loading: Loading
) -> None:
    told = config("r1", world.version("6"), world.version("7"), world.version("8"))
    end_twice(loading, world, "7", told)
    newborn = again(world)
    await newborn.loader.reconfigure(told)
    assert newborn.engine.calls == ["load 6", "warm 6", "load 8", "warm 8"]
    states, revision = newborn.reports[-1]
    assert revision == "r1", "the champion answers"
    assert states["7"].startswith(REFUSED)
    await newborn.loader.reconfigure({**told, "revision": "r2"})
    await newborn.settle()
    assert newborn.reports[-1][0]["7"].startswith(REFUSED), "still asked for, so not tried again"
    assert "load 7" not in newborn.engine.calls


async def test_one_death_may_have_had_another_reason(world: World, loading: Loading) -> None:
    told = config("r1", world.version("6"), world.version("7"))
    end(loading(world, "7", told))
    newborn = again(world)
    await newborn.loader.reconfigure(told)
    assert newborn.reports[-1] == ({"6": "ready", "7": "ready"}, "r1")
    assert left(newborn) == [], "it was loaded: what was is forgotten"


async def test_two_processes_that_die_at_once_are_one_death(world: World, loading: Loading) -> None:
    told = config("r1", world.version("6"), world.version("7"))
    for child in [loading(world, "7", told), loading(world, "7", told)]:
        end(child)
    newborn = again(world)
    await newborn.loader.reconfigure(told)
    assert newborn.reports[-1] == ({"6": "ready", "7": "ready"}, "r1")


async def test_one_that_was_not_asked_for_in_between_is_tried_again(world: World, loading: Loading) -> None:
    six, seven = world.version("6"), world.version("7")
    end_twice(loading, world, "7", config("r1", six, seven))
    newborn = again(world)
    await newborn.loader.reconfigure(config("r1", six, seven))
    assert left(newborn) == ["7", "7"]
    await newborn.loader.reconfigure(config("r2", six))
    await newborn.settle()
    assert left(newborn) == []
    await newborn.loader.reconfigure(config("r3", six, seven))
    await newborn.settle()
    assert newborn.reports[-1] == ({"6": "ready", "7": "ready"}, "r3")


async def test_other_files_under_the_same_number_are_not_what_ended_the_process(
    world: World, loading: Loading
) -> None:
    six = world.version("6")
    end_twice(loading, world, "7", config("r1", six, world.version("7")))
    newborn = again(world)
    await newborn.loader.reconfigure(config("r1", six, world.version("7", edition=2)))
    assert newborn.reports[-1] == ({"6": "ready", "7": "ready"}, "r1")


async def test_a_champion_is_loaded_in_spite_of_its_mark(world: World, loading: Loading) -> None:
    told = config("r1", world.version("6"))
    end_twice(loading, world, "6", told)
    newborn = again(world)
    assert left(newborn) == ["6"]
    await newborn.loader.reconfigure(told)
    assert newborn.reports[-1] == ({"6": "ready"}, "r1")
    assert left(newborn) == []


async def test_two_replicas_on_one_disk_load_at_once(world: World, loading: Loading) -> None:
    six, seven = world.version("6"), world.version("7")
    end(loading(world, "7", config("r1", six, seven)))
    child = loading(world, "7", config("r1", six, seven))
    other = again(world)
    await other.loader.reconfigure(config("r1", six, seven))
    assert other.reports[-1] == ({"6": "ready", "7": "ready"}, "r1")
    await other.loader.reconfigure(config("r2", six))
    await other.settle()
    assert left(other) == ["7"], "it is the living process's"
    end(child)
    newborn = again(world)
    await newborn.loader.reconfigure(config("r1", six, seven))
    assert newborn.reports[-1][0]["7"].startswith(REFUSED)


async def test_a_load_that_ends_leaves_nothing_however_it_ends(world: World) -> None:
    world.engine.broken, world.engine.away = {"7"}, {"8"}
    await world.loader.reconfigure(config("r1", world.version("6"), world.version("7"), world.version("8")))
    assert world.reports[-1][0] == {
        "6": "ready",
        "7": "error: no answer",
        "8": "error: away, trying again",
    }
    assert left(world) == []
    world.loader.close()


async def test_an_engine_that_dies_of_a_version_is_noticed_and_told_while_its_process_still_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "HEALTH_POLL_S", 0.05)
    world.engine.deadly = {"7"}
    told = config("r1", world.version("6"), world.version("7"), world.version("8"))
    await world.loader.reconfigure(told)
    assert world.reports[-1][0] == {
        "6": "ready",
        "7": "error: loading it ended the engine: the engine is not well",
        "8": "error: the engine is not well, trying again",
    }
    assert left(world) == ["7"], "8 had nothing to do with it"
    world.loader.close()


async def test_a_disk_that_takes_no_mark_keeps_nothing_from_being_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> Mark:
        raise OSError("no space left")

    monkeypatch.setattr(marks, "Mark", full)
    await world.loader.reconfigure(config("r1", world.version("6")))
    assert world.reports[-1] == ({"6": "ready"}, "r1")
    assert "version 6 is loaded without a mark: no space left" in caplog.text


def test_a_mark_that_was_opened_before_it_was_removed_tells_of_no_death(tmp_path: Path) -> None:
    mark = Mark(tmp_path / "7-x.loading")
    with (tmp_path / "7-x.loading").open("rb") as opened:
        mark.remove()
        assert opened.read() == b""


def test_a_load_that_had_not_begun_tells_of_no_death(tmp_path: Path) -> None:
    (tmp_path / f"7-{DIGEST[:16]}-x.loading").touch()
    Marks(tmp_path).check("7", DIGEST)
