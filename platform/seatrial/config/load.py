"""Read YAML into a section, and report every bad field with its line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from seatrial.config.section import Section
from seatrial.errors import ConfigError, Problem, UserError

S = TypeVar("S", bound=Section)
Path_ = tuple[str | int, ...]


def load(path: Path, section: type[S]) -> S:
    """Parse and validate the YAML file at ``path``.

    Raises:
        UserError: the file is missing or is no YAML mapping.
        ConfigError: one :class:`Problem` for each bad field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): give the path of a YAML file") from error
    return loads(text, section, file=str(path))


def loads(text: str, section: type[S], *, file: str = "<text>") -> S:
    """Like :func:`load`, from text; ``file`` is the name used in messages."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        what = str(getattr(error, "problem", None) or error).replace("\n", " ")
        raise ConfigError([Problem(file, line, "YAML", what, "mend the syntax")]) from error
    if not isinstance(root, yaml.MappingNode) or not isinstance(values, dict):
        raise ConfigError([Problem(file, 1, "file", type(values).__name__, "write `field: value` lines")])
    duplicates = [
        Problem(file, line, ".".join(map(str, loc)), "given twice", "keep one of the two")
        for loc, line in _duplicates(root, ())
    ]
    lines = _lines(root, ())
    try:
        result = section.model_validate(values)
    except ValidationError as error:
        found = [_problem(file, detail, lines, section) for detail in error.errors()]
        unique = sorted(set(found + duplicates), key=lambda problem: (problem.line, problem.field))
        raise ConfigError(unique) from error
    if duplicates:
        raise ConfigError(duplicates)
    return result


def _lines(node: yaml.Node, at: Path_) -> dict[Path_, int]:
    """Line of every key and item, by its path from the root."""
    found = {at: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*at, key.value)
            found |= _lines(value, path)
            found[path] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found |= _lines(value, (*at, index))
    return found


def _duplicates(node: yaml.Node, at: Path_) -> list[tuple[Path_, int]]:
    found: list[tuple[Path_, int]] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            path = (*at, key.value)
            if key.value in seen:
                found.append((path, key.start_mark.line + 1))
            seen.add(key.value)
            found += _duplicates(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found += _duplicates(value, (*at, index))
    return found


def _problem(file: str, detail: ErrorDetails, lines: dict[Path_, int], section: type[BaseModel]) -> Problem:
    path = _yaml_path(tuple(detail["loc"]), lines)
    known = path
    while known not in lines:
        known = known[:-1]
    field = ".".join(map(str, path)) or "file"
    return Problem(file, lines[known], field, _value(detail), _fix(detail, section))


def _yaml_path(loc: Path_, lines: dict[Path_, int]) -> Path_:
    """Drop the union tags that pydantic puts into a location: they are no keys of the file."""
    path: Path_ = ()
    for position, part in enumerate(loc):
        is_last = position == len(loc) - 1
        if (*path, part) in lines or is_last:
            path = (*path, part)
    return path


def _value(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "missing"
    if detail["type"] == "extra_forbidden":
        return "unknown field"
    value = detail["input"]
    shown = "a mapping" if isinstance(value, dict) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _fix(detail: ErrorDetails, section: type[BaseModel]) -> str:
    name = str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] == "missing":
        return f"add `{name}`"
    if detail["type"] == "extra_forbidden":
        owner = _owner(section, tuple(detail["loc"][:-1]))
        names = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        if close:
            return f"did you mean `{close[0]}`?"
        return "remove it; known fields: " + ", ".join(names)
    if detail["type"].startswith("union_tag"):
        context: dict[str, Any] = detail.get("ctx", {})
        return f"give `type` as one of {context.get('expected_tags', '')}".rstrip()
    return detail["msg"].removeprefix("Value error, ").replace("Input should", "should")


def _owner(section: type[BaseModel], loc: Path_) -> type[BaseModel] | None:
    """The section whose fields a location's last part should have been one of."""
    models: list[type[BaseModel]] = [section]
    for part in loc:
        following: list[type[BaseModel]] = []
        for model in models:
            field = model.model_fields.get(str(part))
            if field is not None:
                following += _sections_in(field.annotation)
            elif _has_tag(model, part) or isinstance(part, int):
                following.append(model)
        models = following or models
    return models[0] if models else None


def _has_tag(model: type[BaseModel], part: str | int) -> bool:
    tag = model.model_fields.get("type")
    return tag is not None and part in getattr(tag.annotation, "__args__", ())


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _sections_in(part)]
