"""Bring the versions of a user_config into the engine, and put its traffic table in force when they are."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from seatrial.config.service import HttpSection
from seatrial.errors import RetryableError, SeatrialError, UserError
from seatrial.registry import versions
from seatrial_serving.live import Live
from seatrial_serving.marks import Marks
from seatrial_serving.table import CHAMPION, Table

log = logging.getLogger(__name__)
READY, LOADING = "ready", "loading"
# Where a replica's status says that a user_config was refused, beside the versions.
CONFIG = "config"
RETRY_S = 2.0
DRAIN_POLL_S = 0.5


@dataclass(frozen=True)
class Preload:
    """One version that must be loaded. ``app`` is the Serve application of a full model."""

    version: str
    kind: str
    digest: str | None
    app: str | None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preload:
        """From an entry of `preload`; ValueError or KeyError when it is none."""
        version = str(value["version"])
        if not version.isdigit() or int(version) < 1:
            raise ValueError(f"preload: version {version!r}: give a version number of MLflow")
        return cls(version, str(value.get("kind", "adapter")), value.get("digest"), value.get("app"))


@dataclass(frozen=True)
class Wanted:
    """One user_config, understood."""

    table: Table
    preload: tuple[Preload, ...]
    http: HttpSection | None

    @classmethod
    def from_json(cls, service: str, config: dict[str, Any]) -> Wanted:
        """From a Ray Serve user_config.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is none; pydantic's errors are ValueErrors.
        """
        named = str(config.get("service", service))
        if named != service:
            raise ValueError(f"user_config: service {named!r}: this application serves {service!r}")
        table = Table.from_json(service, str(config.get("revision", "")), config.get("traffic"))
        preload = tuple(Preload.from_json(item) for item in config.get("preload", []))
        http = config.get("http")
        return cls(table, preload, HttpSection.model_validate(http) if http is not None else None)


class Engine(Protocol):
    """What the loader needs of the engine; all of it is called on the event loop."""

    max_lora_rank: int
    base_digest: str

    async def load(self, version: str, folder: Path) -> None: ...
    async def unload(self, version: str) -> None: ...
    async def warm(self, version: str, app: str | None) -> None: ...
    async def check_health(self) -> None: ...


class Loader:
    """Keeps what is loaded at what the newest user_config wants. One task at a time does the work."""

    def __init__(
        self,
        service: str,
        engine: Engine,
        live: Live,
        cache: Path,
        *,
        set_http: Callable[[HttpSection], None],
        report: Callable[[dict[str, str], str], None],
        birth_wait_s: float = 300.0,
    ) -> None:
        self._service = service
        self._engine = engine
        self._live = live
        self._cache = cache
        self._marks = Marks(cache / ".loading" / service)
        self._set_http = set_http
        self._report = report
        self._birth_wait_s = birth_wait_s
        self._states: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self._wanted: Wanted | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take a new user_config.

        The first one is awaited: a replica that cannot serve its champion is not healthy. Later ones return
        at once, because Serve sends no traffic to a replica while it reconfigures; the old table stays in
        force until all versions that the new one names are ready. Serve stops a replica whose
        reconfiguration raises, so a later config that cannot be understood is reported and changes nothing.

        Raises:
            ValueError: the first config cannot be understood; SeatrialError: it cannot be served.
        """
        is_first = self._wanted is None
        try:
            wanted = self._understand(config)
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            if is_first:
                raise
            log.error("user_config is refused: %s", error)
            self._states[CONFIG] = f"error: {error}"
            self._tell()
            return
        self._states.pop(CONFIG, None)
        self._wanted = wanted
        if is_first:
            await self._birth(wanted)
            self._task = asyncio.create_task(self._work())
        elif not self._apply(wanted):
            self._mark_loading(wanted)
        self._changed.set()

    def _understand(self, config: dict[str, Any]) -> Wanted:
        wanted = Wanted.from_json(self._service, config)
        if wanted.http is not None:
            self._set_http(wanted.http)
        return wanted

    def close(self) -> None:
        """Stop loading."""
        if self._task is not None:
            self._task.cancel()

    async def _birth(self, wanted: Wanted) -> None:
        deadline = asyncio.get_running_loop().time() + self._birth_wait_s
        champion = wanted.table.aliases.get(CHAMPION)
        self._mark_loading(wanted)
        while True:
            retry = await self._load_all(wanted)
            if self._apply(wanted):
                return
            if champion is None or champion in self._live.ready:
                # The champion can serve; an arm that cannot is reported, and its units get the champion.
                self._live.table = wanted.table
                self._tell()
                return
            if not retry or asyncio.get_running_loop().time() > deadline:
                raise UserError(
                    f"{self._service}@{champion}: champion: {self._states.get(champion, 'not in preload')}"
                )
            await asyncio.sleep(RETRY_S)

    async def _work(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = self._wanted
            if wanted is not None and await self._pursue(wanted):
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._changed.wait()
                self._changed.set()

    async def _pursue(self, wanted: Wanted) -> bool:
        """Load, put in force and unload what can be now; whether something is left to try again."""
        try:
            retry = await self._load_all(wanted)
            if self._wanted is wanted:
                self._apply(wanted)
                await self._unload_others(wanted)
        except Exception:
            log.exception("what revision %r wants is not all done: trying again", wanted.table.revision)
            return True
        return retry

    def _apply(self, wanted: Wanted) -> bool:
        """Put the table in force if all that it names is ready."""
        missing = {item.version for item in wanted.preload if not self._has(item)}
        is_ready = wanted.table.needed <= self._live.ready.keys() - missing
        if is_ready and self._live.table is not wanted.table:
            self._live.table = wanted.table
        self._tell()
        return is_ready and not missing

    def _has(self, item: Preload) -> bool:
        """Whether exactly this is ready: a version that was deleted may have come back with other files."""
        if item.version not in self._live.ready:
            return False
        return item.digest is None or item.digest == self._digests.get(item.version)

    async def _load_all(self, wanted: Wanted) -> bool:
        """Load what is missing; whether something may work later that did not now."""
        retry = False
        for item in wanted.preload:
            if self._has(item) or self._wanted is not wanted:
                continue
            try:
                is_loaded = await self._load(item, wanted)
            except (RetryableError, TimeoutError) as error:
                retry = True
                self._states[item.version] = f"error: {error}, trying again"
            except Exception as error:
                expected = isinstance(error, SeatrialError)
                log.error("version %s is not loaded: %s", item.version, error, exc_info=not expected)
                self._states[item.version] = f"error: {error}"
            else:
                if is_loaded:
                    self._live.ready[item.version] = item.app
                    self._states[item.version] = READY
            self._tell()
        return retry

    async def _load(self, item: Preload, wanted: Wanted) -> bool:
        """Load a version; False when something else was wanted before that was possible."""
        self._states[item.version] = LOADING
        self._tell()
        digest = item.digest or ""
        if item.kind == "adapter":
            folder, digest = await asyncio.to_thread(self._fetch, item)
            self._check_mark(item.version, digest, wanted)
        elif item.app is None:
            raise UserError(f"{self._service}@{item.version}: kind {item.kind}: no `app` that serves it")
        if item.version in self._live.ready and not await self._retire(item.version, wanted):
            return False
        if item.kind == "adapter":
            loading = partial(self._load_adapter, item.version, folder)
            await self._marks.guard(item.version, digest, loading, self._engine.check_health)
        else:
            await self._engine.warm(item.version, item.app)
        self._digests[item.version] = digest
        return True

    def _check_mark(self, version: str, digest: str, wanted: Wanted) -> None:
        """Refuse what has ended a process that loaded it; without the champion there would be no service."""
        if version == wanted.table.aliases.get(CHAMPION):
            self._marks.forget(lambda marked: marked == version)
        else:
            self._marks.check(version, digest)

    async def _load_adapter(self, version: str, folder: Path) -> None:
        await self._engine.load(version, folder)
        try:
            await self._engine.warm(version, None)
        except BaseException:
            try:
                await self._engine.unload(version)
            except Exception as error:
                log.warning("version %s failed and is not taken out of the engine: %s", version, error)
            raise

    def _fetch(self, item: Preload) -> tuple[Path, str]:
        """A verified folder that fits this engine, and its digest. A copy that is here needs no MLflow."""
        known = versions.cached(self._cache, item.digest) if item.digest else None
        folder = known or versions.download(self._service, item.version, self._cache)
        manifest = versions.read_manifest(folder)
        what = f"{self._service}@{item.version}"
        if item.digest and manifest.digest != item.digest:
            raise UserError(f"{what}: digest {manifest.digest[:12]}: expected {item.digest[:12]}")
        if manifest.kind != "adapter":
            raise UserError(f"{what}: kind {manifest.kind}: it needs an application of its own")
        if manifest.base is None or manifest.base.digest != self._engine.base_digest:
            theirs = manifest.base.ref if manifest.base else "no base"
            raise UserError(
                f"{what}: trained on {theirs}, whose digest is not this engine's base: "
                "train it on `engine.base` again"
            )
        rank = json.loads((folder / "adapter_config.json").read_bytes()).get("r", 0)
        if rank > self._engine.max_lora_rank:
            raise UserError(f"{what}: rank {rank}: set engine.max_lora_rank to at least {rank}")
        return folder, manifest.digest

    async def _unload_others(self, wanted: Wanted) -> None:
        """Take out what is no longer wanted, each version when its last request is over."""
        kept = {item.version for item in wanted.preload} | self._live.table.needed
        # Whoever asks for a version again wants it tried again.
        self._marks.forget(lambda version: version not in kept)
        for version in [v for v in self._live.ready if v not in kept]:
            # A newer wish may want what this one does not.
            if self._wanted is not wanted or not await self._retire(version, wanted):
                self._changed.set()
                return
        self._states = {v: state for v, state in self._states.items() if v in kept or v == CONFIG}
        self._tell()

    async def _retire(self, version: str, wanted: Wanted) -> bool:
        """Take a version out when its last request is over; False when something else was wanted first."""
        app = self._live.ready.pop(version)
        while self._live.in_flight[version] and self._wanted is wanted:
            await asyncio.sleep(DRAIN_POLL_S)
        if self._live.in_flight[version]:
            self._live.ready[version] = app
            return False
        if app is None:
            try:
                await self._engine.unload(version)
            except BaseException:
                self._live.ready[version] = app
                raise
        del self._live.in_flight[version]
        self._digests.pop(version, None)
        return True

    def _mark_loading(self, wanted: Wanted) -> None:
        for item in wanted.preload:
            if not self._has(item):
                self._states[item.version] = LOADING
        self._tell()

    def _tell(self) -> None:
        self._report(dict(self._states), self._live.table.revision)
