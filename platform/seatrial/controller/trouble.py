"""What went wrong with a service, how it is said, and for how long the service is then left alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seatrial.config.addresses import without_passwords
from seatrial.errors import SeatrialError
from seatrial.reconcile.world import DesiredService

log = logging.getLogger("seatrial.controller")

REPEAT_LOG_S = 60.0
FIRST_REST_S = 2.0
LONGEST_REST_S = 60.0


@dataclass(frozen=True)
class Trouble:
    """One line, and the error behind it."""

    text: str
    error: Exception

    @classmethod
    def of(cls, error: Exception, *where: str) -> Trouble:
        """``where`` names the service and what was being done. Passwords of URLs are left out."""
        lines = str(error).strip().splitlines()
        said = without_passwords(lines[0]) if lines else "no message"
        is_ours = isinstance(error, SeatrialError)
        return cls(": ".join([*where, said if is_ours else f"{type(error).__name__}: {said}"]), error)


class Log:
    """Says each trouble once a minute; with a traceback where nobody raised it on purpose."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def say(self, troubles: Iterable[Trouble], now: float) -> None:
        """Log what was not said a short while ago."""
        self._said = {text: at for text, at in self._said.items() if 0 <= now - at < REPEAT_LOG_S}
        for trouble in troubles:
            if trouble.text not in self._said:
                self._said[trouble.text] = now
                is_ours = isinstance(trouble.error, SeatrialError)
                log.warning("%s", trouble.text, exc_info=None if is_ours else trouble.error)


@dataclass(frozen=True)
class _Rest:
    trouble: Trouble
    tries: int
    began: float
    until: float
    wish: tuple[float, Mapping[str, str]]


class Rests:
    """Services that failed and are left alone for 2, 4, 8 … seconds, at most a minute."""

    def __init__(self) -> None:
        self._rests: dict[str, _Rest] = {}

    def of(self, service: DesiredService, now: float) -> Trouble | None:
        """Why the service is left alone now. What a person changes is tried at once."""
        rest = self._rests.get(service.name)
        if rest is None:
            return None
        if rest.wish != _wish(service):
            del self._rests[service.name]
            return None
        # It began in the future: the clock was set back.
        return rest.trouble if rest.began <= now < rest.until else None

    def begin(self, service: DesiredService, trouble: Trouble, now: float) -> None:
        """It failed once more."""
        tries = self._rests[service.name].tries + 1 if service.name in self._rests else 1
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(tries - 1, 10))
        self._rests[service.name] = _Rest(trouble, tries, now, now + rest_s, _wish(service))

    def end(self, service: DesiredService) -> None:
        """It went well."""
        self._rests.pop(service.name, None)


def _wish(service: DesiredService) -> tuple[float, Mapping[str, str]]:
    return service.config_at, service.aliases
