"""Set an alias of a service to a version, as a person does in the MLflow UI."""

from __future__ import annotations

import re

from seatrial.errors import UserError
from seatrial.experiments.trial import CHAMPION, MOST_ALIAS_CHARS, SHADOW

ALIAS = re.compile(r"challenger(-[a-z0-9][a-z0-9-]*)?")
SETTABLE = f"challenger, challenger-b, champion or shadow, in at most {MOST_ALIAS_CHARS} characters"


def is_settable(alias: str) -> bool:
    """Whether the alias means something that a person may ask for."""
    is_challenger = len(alias) <= MOST_ALIAS_CHARS and ALIAS.fullmatch(alias) is not None
    return is_challenger or alias in (CHAMPION, SHADOW)


def set_alias(service: str, version: str, alias: str, *, uri: str) -> str | None:
    """Point the alias at the version; the version that it named before.

    Raises:
        UserError: no such version, one without a manifest, or an alias that means nothing here.
        RetryableError: MLflow does not answer.
    """
    from seatrial.registry import aliases, versions

    if not is_settable(alias):
        raise UserError(f"--as: {alias}: give {SETTABLE}")
    if not version.isdecimal():
        raise UserError(f"VERSION: {version}: no number: give one that MLflow shows, such as 2")
    before = aliases.read(service, uri=uri)
    record = versions.describe(service, version, uri=uri)
    if not record.tags.get("seatrial.digest"):
        raise UserError(
            f"VERSION: {version}: has no manifest (`seatrial.digest` tag): register it with a Seatrial job"
        )
    if alias != CHAMPION and CHAMPION not in before:
        raise UserError(f"--as: {alias}: {service} has no champion to try it against: use `--as champion`")
    if alias != CHAMPION and before[CHAMPION] == version:
        raise UserError(f"VERSION: {version}: is the champion of {service} already: give another version")
    was = before.get(alias)
    aliases.move(service, alias, version, expected=was, uri=uri)
    return was
