"""What `-C name=value` may say: how to deploy, a service file, or its fields one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seatrial.config.load import loads
from seatrial.config.service import ServiceConfig
from seatrial.errors import UserError
from seatrial.experiments.trial import CHAMPION
from seatrial.submission.promote import SETTABLE, is_settable
from seatrial.submission.recipes import load_service

SECTIONS = ("engine", "http", "trial")


@dataclass(frozen=True)
class Options:
    """The options, read. ``fields`` are those of a service by their dotted paths."""

    file: Path | None = None
    fields: Mapping[str, Any] | None = None
    wait: bool = True
    timeout_s: float = 900.0
    alias: str | None = None
    """What the model is to become, where that is said."""

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> Options:
        """From what MLflow hands over: texts from the command line, any values from Python.

        Raises:
            UserError: an option that is not known, or a value that is none.
        """
        values = {name: _value(name, value) for name, value in (config or {}).items()}
        fields = {name: values.pop(name) for name in list(values) if name.split(".")[0] in SECTIONS}
        file = values.pop("config", None)
        if file is not None and fields:
            raise UserError(f"-C {next(iter(fields))}: given beside `config`: write it into {file}")
        found = cls(
            None if file is None else Path(str(file)),
            fields,
            _flag(values, "wait", default=True),
            _seconds(values, "timeout_s", cls.timeout_s),
            _alias(values),
        )
        if values:
            known = "config, engine.…, http.…, trial.…, wait, timeout_s, as, promote"
            raise UserError(f"-C {next(iter(values))}: unknown option: known are {known}")
        return found

    @property
    def is_about_service(self) -> bool:
        """Whether they say anything of the service's configuration."""
        return self.file is not None or bool(self.fields)

    def service(self, name: str, before: Mapping[str, Any] | None = None) -> ServiceConfig:
        """The service's configuration; fields change what it was ``before``, a file replaces it.

        Raises:
            UserError: the file is missing, is no service's or is another one's.
            ConfigError: one problem for each bad field.
        """
        if self.file is not None:
            config = load_service(self.file)
            if config.name != name:
                raise UserError(
                    f"{self.file}: name: {config.name}: is not the deployment {name}: give one name"
                )
            return config
        values: dict[str, Any] = {**(before or {}), "name": name}
        for path, value in (self.fields or {}).items():
            values = _with(values, path.split("."), value)
        return loads(yaml.safe_dump(values), ServiceConfig, file="-C")


def _value(name: str, value: Any) -> Any:
    if name == "config":
        return value
    if not isinstance(value, str):
        return _plain(name, value)
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"-C {name}: {value}: no YAML value: mend the syntax") from error


def _plain(name: str, value: Any) -> Any:
    """What Python gives, where a configuration can hold it."""
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"-C {name}: {value!r}: no plain value: give text, a number, true or false, a list or a dict"
        ) from error
    return value


def _with(values: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    inner = values.get(first)
    nested = _with(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value
    return {**values, first: nested}


def _flag(values: dict[str, Any], name: str, *, default: bool) -> bool:
    found = values.pop(name, default)
    if not isinstance(found, bool):
        raise UserError(f"-C {name}: {found}: give true or false")
    return found


def _alias(values: dict[str, Any]) -> str | None:
    """`as=ALIAS`, or `promote=true` for the champion's."""
    is_promoted, alias = _flag(values, "promote", default=False), values.pop("as", None)
    if alias is not None and is_promoted:
        raise UserError(f"-C as: {alias}: given beside promote=true: give one of the two")
    if alias is None:
        return CHAMPION if is_promoted else None
    if not isinstance(alias, str) or not is_settable(alias):
        raise UserError(f"-C as: {alias}: give {SETTABLE}")
    return alias


def _seconds(values: dict[str, Any], name: str, default: float) -> float:
    found = values.pop(name, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found >= 1:
        raise UserError(f"-C {name}: {found}: give seconds, at least 1")
    return float(found)
