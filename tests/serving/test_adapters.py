"""When versions are loaded, when the table changes, and what a failure leaves untouched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seatrial.config.service import HttpSection
from seatrial.errors import RetryableError, UserError
from seatrial.registry import versions
from seatrial_serving.adapters import Loader
from seatrial_serving.live import Live, Rules
from seatrial_serving.table import Table
from tests.serving.stage import free_port

BASE = versions.BaseRef(ref="base", digest="b" * 64)
HTTP = HttpSection(allow_anonymous=True)


class Engine:
    """Notes what it is told. ``gate`` holds up loading, ``broken`` versions do not load.

    ``stuck`` ones cannot be taken out the first time, ``away`` ones are to be tried again, ``deadly`` ones
    kill the engine while they are loaded, so that nobody ever hears of the load again.
    """

    max_lora_rank = 16
    base_digest = BASE.digest

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken: set[str] = set()
        self.stuck: set[str] = set()
        self.away: set[str] = set()
        self.deadly: set[str] = set()
        self.is_dead = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, version: str, folder: Path) -> None:
        await self.gate.wait()
        self.calls.append(f"load {version}")
        if version in self.deadly:
            self.is_dead = True
            await asyncio.Event().wait()

    async def unload(self, version: str) -> None:
        if version in self.stuck:
            self.stuck.remove(version)
            raise RuntimeError("the engine is busy")
        self.calls.append(f"unload {version}")

    async def warm(self, version: str, app: str | None) -> None:
        self.calls.append(f"warm {version}" + (f" in {app}" if app else ""))
        if version in self.broken:
            raise UserError("no answer")
        if version in self.away:
            raise RetryableError("away")

    async def check_health(self) -> None:
        if self.is_dead:
            raise RuntimeError("the engine is not well")


class World:
    """A loader over folders that hold real manifests."""

    def __init__(self, tmp_path: Path) -> None:
        self.cache = tmp_path
        self.engine = Engine()
        self.live = Live(Table("svc"), Rules.of(HTTP, model_tokens=512, max_in_flight=8))
        self.reports: list[tuple[dict[str, str], str]] = []
        self.http: list[HttpSection] = []
        self.loader = Loader(
            "svc",
            self.engine,
            self.live,
            self.cache,
            set_http=self.http.append,
            report=lambda states, revision: self.reports.append((states, revision)),
            birth_wait_s=0.1,
        )

    def version(
        self, number: str, *, base: versions.BaseRef | None = BASE, rank: int = 8, edition: int = 1
    ) -> dict[str, Any]:
        folder = self.cache / f"making-{number}"
        folder.mkdir()
        content = {"r": rank, "number": number, "edition": edition}
        (folder / "adapter_config.json").write_text(json.dumps(content))
        manifest = versions.write_manifest(folder, kind="adapter", method="lora", base=base)
        folder.rename(self.cache / f"sha256-{manifest.digest}")
        return {"version": number, "kind": "adapter", "digest": manifest.digest}

    async def configure(self, revision: str, preload: list[dict[str, Any]], **aliases: str) -> None:
        arms = [{"name": name, "version": version, "weight": 0.5} for name, version in aliases.items()]
        trial = {"id": "t", "seed": "t", "coverage": 1.0, "arms": arms} if len(arms) == 2 else None
        traffic = {"aliases": aliases, "trial": trial} if aliases else None
        await self.loader.reconfigure(
            {"service": "svc", "revision": revision, "preload": preload, "traffic": traffic}
        )

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so():
                await asyncio.sleep(0.01)

    async def settle(self) -> None:
        for _ in range(2000):
            await asyncio.sleep(0.01)
            if not any(state == "loading" for state in self.reports[-1][0].values()):
                return


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_at_birth_everything_is_loaded_and_warm_before_the_replica_is_healthy(world: World) -> None:
    await world.configure("r1", [world.version("6"), world.version("7")], champion="6", challenger="7")
    assert world.engine.calls == ["load 6", "warm 6", "load 7", "warm 7"]
    assert world.live.table.revision == "r1"
    assert world.reports[-1] == ({"6": "ready", "7": "ready"}, "r1")


async def test_later_configs_return_at_once_and_the_old_table_serves_until_all_is_ready(world: World) -> None:
    six, seven = world.version("6"), world.version("7")
    await world.configure("r1", [six], champion="6")
    world.engine.gate.clear()
    await asyncio.wait_for(world.configure("r2", [six, seven], champion="6", challenger="7"), 0.5)
    await asyncio.sleep(0.05)
    assert world.live.table.revision == "r1"
    assert world.reports[-1] == ({"6": "ready", "7": "loading"}, "r1")
    world.engine.gate.set()
    await world.settle()
    assert world.live.table.revision == "r2"
    assert world.reports[-1] == ({"6": "ready", "7": "ready"}, "r2")


async def test_a_table_whose_versions_are_loaded_is_in_force_at_once(world: World) -> None:
    both = [world.version("6"), world.version("7")]
    await world.configure("r1", both, champion="6")
    await world.configure("r2", both, champion="7")
    assert world.live.table.revision == "r2"


async def test_a_version_that_does_not_load_is_reported_and_changes_nothing(world: World) -> None:
    six, seven = world.version("6"), world.version("7")
    await world.configure("r1", [six], champion="6")
    world.engine.broken.add("7")
    await world.configure("r2", [six, seven], champion="6", challenger="7")
    await world.settle()
    assert world.live.table.revision == "r1"
    assert world.reports[-1] == ({"6": "ready", "7": "error: no answer"}, "r1")
    assert "unload 7" in world.engine.calls
    await world.configure("r3", [six], champion="6")
    await world.settle()
    assert world.live.table.revision == "r3"


async def test_a_copy_that_was_changed_is_never_loaded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    six, seven = world.version("6"), world.version("7")
    await world.configure("r1", [six], champion="6")
    (world.cache / f"sha256-{seven['digest']}" / "adapter_config.json").write_text('{"r": 8, "more": 1}')
    await world.configure("r2", [six, seven], champion="6", challenger="7")
    await world.settle()
    assert world.reports[-1][0]["7"].endswith("trying again"), "it would be fetched anew if MLflow answered"
    assert "load 7" not in world.engine.calls


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"base": versions.BaseRef(ref="other", digest="c" * 64)}, "trained on other"),
        ({"base": None}, "trained on no base"),
        ({"rank": 32}, "rank 32: set engine.max_lora_rank"),
    ],
)
async def test_an_adapter_that_does_not_fit_this_engine_is_refused(
    world: World, wrong: dict[str, Any], reason: str
) -> None:
    six, seven = world.version("6"), world.version("7", **wrong)
    await world.configure("r1", [six, seven], champion="6")
    assert reason in world.reports[-1][0]["7"]
    assert world.live.table.revision == "r1"
    assert "load 7" not in world.engine.calls


async def test_without_its_champion_a_replica_is_not_born(world: World) -> None:
    world.engine.broken.add("6")
    with pytest.raises(UserError, match="champion: error: no answer"):
        await world.configure("r1", [world.version("6")], champion="6")
    assert world.reports[-1][0] == {"6": "error: no answer"}


async def test_a_replica_is_born_without_traffic_before_there_is_a_champion(world: World) -> None:
    await world.configure("r1", [])
    assert world.live.table.revision == "r1"


async def test_an_unwanted_version_leaves_when_its_last_request_is_over(world: World) -> None:
    six, seven = world.version("6"), world.version("7")
    await world.configure("r1", [six, seven], champion="6")
    world.live.in_flight["6"] = 1
    await world.configure("r2", [seven], champion="7")
    await asyncio.sleep(0.1)
    assert "6" not in world.live.ready, "nobody new gets it"
    assert "unload 6" not in world.engine.calls
    world.live.in_flight["6"] = 0
    await world.until(lambda: world.reports[-1][0] == {"7": "ready"})
    assert "unload 6" in world.engine.calls


async def test_what_a_newer_wish_wants_is_not_unloaded_for_an_older_one(world: World) -> None:
    """Of 2 and 3 that are to leave, 2 is still answering when 3 becomes the champion again."""
    two, three, four = (world.version(number) for number in "234")
    await world.configure("r1", [two, three, four], champion="3")
    world.live.in_flight["2"] = 1
    await world.configure("r2", [four], champion="4")
    await asyncio.sleep(0.1)
    assert "2" not in world.live.ready
    await world.configure("r3", [three, four], champion="3")
    world.live.in_flight["2"] = 0
    for _ in range(80):
        await asyncio.sleep(0.01)
        assert "3" in world.live.ready
        assert world.live.table.revision == "r3"
    assert "unload 2" in world.engine.calls
    assert "unload 3" not in world.engine.calls


async def test_a_version_that_came_back_with_other_files_is_loaded_anew_after_its_last_request(
    world: World,
) -> None:
    await world.configure("r1", [world.version("6")], champion="6")
    other = world.version("6", edition=2)
    world.live.in_flight["6"] = 1
    await world.configure("r2", [other], champion="6")
    await asyncio.sleep(0.1)
    assert world.live.table.revision == "r1"
    assert world.reports[-1] == ({"6": "loading"}, "r1")
    assert world.engine.calls == ["load 6", "warm 6"]
    world.live.in_flight["6"] = 0
    await world.until(lambda: world.reports[-1] == ({"6": "ready"}, "r2"))
    assert world.engine.calls == ["load 6", "warm 6", "unload 6", "load 6", "warm 6"]
    await world.configure("r3", [other], champion="6")
    await world.settle()
    assert len(world.engine.calls) == 5, "the same files are loaded once"


async def test_other_files_that_are_refused_leave_the_old_ones_serving(world: World) -> None:
    await world.configure("r1", [world.version("6")], champion="6")
    await world.configure("r2", [world.version("6", edition=2, rank=32)], champion="6")
    await world.settle()
    assert "rank 32" in world.reports[-1][0]["6"]
    assert world.live.ready == {"6": None}
    assert world.engine.calls == ["load 6", "warm 6"]


async def test_a_full_model_is_warmed_in_its_own_application(world: World) -> None:
    full = {"version": "8", "kind": "full", "digest": "d" * 64, "app": "svc--v8"}
    await world.configure("r1", [full], champion="8")
    assert world.engine.calls == ["warm 8 in svc--v8"]
    assert world.live.ready == {"8": "svc--v8"}


async def test_rules_change_without_a_restart(world: World) -> None:
    config = {"service": "svc", "revision": "r1", "preload": [], "traffic": None}
    await world.loader.reconfigure({**config, "http": {"allow_anonymous": True, "max_n": 2}})
    assert world.http[-1].max_n == 2


async def test_a_version_that_the_engine_does_not_let_go_is_tried_again_and_stops_nothing_else(
    world: World,
) -> None:
    six, seven, eight = (world.version(number) for number in "678")
    await world.configure("r1", [six, seven], champion="6")
    world.engine.stuck = {"7"}
    await world.configure("r2", [six], champion="6")
    await asyncio.sleep(0.1)
    await world.configure("r3", [six, eight], champion="8")
    for _ in range(50):
        await asyncio.sleep(0.1)
        if "unload 7" in world.engine.calls and world.live.table.revision == "r3":
            break
    assert world.live.table.revision == "r3"
    assert "unload 7" in world.engine.calls
    assert world.reports[-1] == ({"6": "ready", "8": "ready"}, "r3")


async def test_a_new_wish_does_not_wait_for_the_next_try_of_an_old_one(world: World) -> None:
    six, seven, eight = (world.version(number) for number in "678")
    await world.configure("r1", [six], champion="6")
    world.engine.away = {"7"}
    await world.configure("r2", [six, seven], champion="7")
    await world.settle()
    assert world.reports[-1][0]["7"] == "error: away, trying again"
    await world.configure("r3", [six, eight], champion="8")
    await asyncio.sleep(0.5)
    assert world.live.table.revision == "r3"


@pytest.mark.parametrize(
    "wrong",
    [
        {"service": "other"},
        {"preload": [{"version": "latest"}]},
        {"preload": ["7"]},
        {"traffic": ["champion"]},
        {"traffic": {"aliases": ["champion"]}},
        {"traffic": {"aliases": {}, "shadow": "8"}},
        {"traffic": {"aliases": {}, "trial": "t"}},
        {"traffic": {"aliases": {}, "trial": {"id": "t"}}},
        {"http": {"max_n": 0}},
    ],
)
async def test_a_config_that_is_none_is_refused_and_the_old_one_stays(
    world: World, wrong: dict[str, Any]
) -> None:
    await world.configure("r1", [world.version("6")], champion="6")
    broken = {"service": "svc", "revision": "r2", **wrong}
    await world.loader.reconfigure(broken)  # Serve would stop a replica that raises
    assert world.live.table.revision == "r1"
    assert world.reports[-1][0]["config"].startswith("error: ")
    await world.configure("r3", [], champion="6")
    assert "config" not in world.reports[-1][0]


async def test_a_replica_is_not_born_with_a_config_that_is_none(world: World) -> None:
    with pytest.raises(ValueError, match="serves 'svc'"):
        await world.loader.reconfigure({"service": "other"})
