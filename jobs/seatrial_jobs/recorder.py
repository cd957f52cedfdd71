"""Measurements on their way from the training loop to MLflow, without the loop waiting for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from seatrial.registry.runs import Point

FLUSH_EVERY_S = 2.0
RETRY_AFTER_S = 2.0


class Recorder:
    """Sends points in the background, in order, each one once.

    ``send`` writes points and raises when it could not; they are kept and sent again. ``known`` tells the
    last step that MLflow has of each key: points at or before it are dropped, so that a resumed job does not
    log a step a second time; nor does one that measures a step twice.
    """

    def __init__(
        self,
        send: Callable[[list[Point]], None],
        known: Callable[[], dict[str, int]],
        *,
        flush_every_s: float = FLUSH_EVERY_S,
    ) -> None:
        self._send = send
        self._known = known
        self._flush_every_s = flush_every_s
        self._last: dict[str, int] | None = None
        self._waiting: list[Point] = []
        self._notes: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self.problem: Exception | None = None
        """Why the last attempt failed; ``None`` after one that succeeded."""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def add(self, points: Iterable[Point]) -> None:
        """Take points; returns at once."""
        with self._changed:
            self._waiting.extend(points)

    def note(self, name: str, send: Callable[[], None]) -> None:
        """Take something that is no point, such as a tag, sent by ``send``; a later one takes its place."""
        with self._changed:
            self._notes[name] = send

    def pending(self) -> list[dict[str, Any]]:
        """Points that MLflow has not confirmed, as JSON values."""
        with self._changed:
            return [asdict(point) for point in self._waiting]

    def close(self, timeout_s: float) -> bool:
        """Send what is left; whether all of it arrived within ``timeout_s``."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._waiting and not self._notes

    def _run(self) -> None:
        while True:
            sent = self._flush()
            with self._changed:
                if self._closing and not self._waiting and not self._notes:
                    return
                if sent and self._closing:
                    continue
                self._changed.wait(self._flush_every_s if sent else RETRY_AFTER_S)

    def _flush(self) -> bool:
        with self._changed:
            batch, notes = list(self._waiting), dict(self._notes)
        try:
            if self._last is None:
                self._last = self._known()
            last, fresh = dict(self._last), list[Point]()
            for point in batch:
                if point.step > last.get(point.key, -1):
                    last[point.key] = point.step
                    fresh.append(point)
            if fresh:
                self._send(fresh)
            for send in notes.values():
                send()
        except Exception as error:  # whatever it was, the points are kept and sent again
            self.problem = error
            return False
        self.problem, self._last = None, last
        with self._changed:
            del self._waiting[: len(batch)]
            for name in [name for name, send in notes.items() if self._notes[name] is send]:
                del self._notes[name]
        return True


def point(key: str, value: float, step: int) -> Point:
    """A measurement taken now."""
    return Point(key, value, step, int(time.time() * 1000))
