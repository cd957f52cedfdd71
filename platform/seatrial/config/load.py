"""Read YAML into a section, and report every bad field with its line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

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
    values, lines, twice = _parse(text, file)
    duplicates = [
        Problem(file, line, ".".join(map(str, loc)), "given twice", "keep one of the two")
        for loc, line in twice
    ]
    switches = _switches(values, lines, section, file)
    try:
        result = section.model_validate(values)
    except ValidationError as error:
        found = _problems(file, error.errors(), lines, section)
        told = {(problem.line, problem.field) for problem in found}
        switches = [each for each in switches if (each.line, each.field) not in told]
        unique = sorted({*found, *duplicates, *switches}, key=lambda problem: (problem.line, problem.field))
        raise ConfigError(unique) from error
    if duplicates or switches:
        raise ConfigError([*duplicates, *switches])
    return result


class _Loader(yaml.SafeLoader):
    """Says where a value is that Python does not take, such as the date 2024-13-45."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            raise ConstructorError(None, None, f"{error}: {str(node.value)[:40]}", node.start_mark) from error


def _parse(text: str, file: str) -> tuple[dict[Any, Any], dict[Path_, int], list[tuple[Path_, int]]]:
    """The values of a YAML mapping, the line of every path in it, and the paths that are given twice."""
    try:
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506
        if not isinstance(root, yaml.MappingNode) or not isinstance(values, dict):
            raise ConfigError([Problem(file, 1, "file", type(values).__name__, "write `field: value` lines")])
        return values, _lines(root, ()), _duplicates(root, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        what = str(getattr(error, "problem", None) or error).replace("\n", " ")
        raise ConfigError([Problem(file, line, "YAML", what, "mend the syntax")]) from error
    except RecursionError as error:
        what = "nested too deeply, or a value that holds itself"
        raise ConfigError([Problem(file, 1, "YAML", what, "write plain values")]) from error


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


def _problems(
    file: str, details: list[ErrorDetails], lines: dict[Path_, int], section: type[BaseModel]
) -> list[Problem]:
    """One problem for each place: the alternatives of a union are told together."""
    places: dict[tuple[Path_, str], list[str]] = {}
    alternatives: set[Path_] = set()
    for detail in details:
        path, is_alternative = _yaml_path(detail, lines)
        if is_alternative:
            alternatives.add(path)
        fixes = places.setdefault((path, _value(detail)), [])
        fixes += [fix for fix in [_fix(detail, section)] if fix not in fixes]
    deeper = {path[:length] for path, _ in places for length in range(len(path))}
    return [
        Problem(file, _line(path, lines), ".".join(map(str, path)) or "file", value, ", or ".join(fixes))
        for (path, value), fixes in places.items()
        if not (path in alternatives and path in deeper)  # the alternative that fits best says more
    ]


def _switches(
    values: dict[Any, Any], lines: dict[Path_, int], section: type[BaseModel], file: str
) -> list[Problem]:
    """YAML's `yes`, `no`, `on` and `off` where a number belongs, which Python would take for 1 and 0."""
    found = []
    for path, line in lines.items():
        owner = _owner(section, path[:-1]) if path and isinstance(_at(values, path), bool) else None
        field = owner.model_fields.get(str(path[-1])) if owner else None
        if field is not None and _is_number(field.annotation):
            shown = repr(_at(values, path))
            found.append(Problem(file, line, ".".join(map(str, path)), shown, "should be a number"))
    return found


def _at(values: Any, path: Path_) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):  # a key that is no text, or one of a merge
            return None
    return values


def _is_number(annotation: Any) -> bool:
    parts = getattr(annotation, "__args__", ())
    return annotation in (int, float) or any(_is_number(part) for part in parts if part is not bool)


def _line(path: Path_, lines: dict[Path_, int]) -> int:
    """The line of a path, or of the nearest thing around it that is in the file."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _yaml_path(detail: ErrorDetails, lines: dict[Path_, int]) -> tuple[Path_, bool]:
    """Where an error is in the file, and whether it is about one alternative of a union.

    Pydantic puts the alternatives of unions into a location: they are no keys of the file.
    """
    path: Path_ = ()
    loc = tuple(detail["loc"])
    for part in loc:
        if (*path, part) in lines:
            path = (*path, part)
    if detail["type"] == "missing":
        return (*path, loc[-1]), False
    if detail["type"] == "invalid_key":
        return (*path, str(loc[-1])), False
    if detail["type"].startswith("union_tag"):
        return (*path, "type"), False
    if detail["type"] == "rule":
        return (*path, *detail["ctx"]["field"].split(".")), False
    return path, bool(loc) and loc[-1:] != path[-1:]


def _value(detail: ErrorDetails) -> str:
    if detail["type"] in ("missing", "union_tag_not_found"):
        return "missing"
    if detail["type"] == "extra_forbidden":
        return "unknown field"
    context: dict[str, Any] = detail.get("ctx", {})
    value = context.get("value", context.get("tag", detail["input"]))
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
        return f"give `type` as one of {_tags(section, tuple(detail['loc']))}"
    if detail["type"] == "model_type":
        return "should be a section of `field: value` lines"
    text = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return text.replace("valid tuple", "list")


def _tags(section: type[BaseModel], loc: Path_) -> str:
    """What `type` may be in the union at a location."""
    owner = _owner(section, loc[:-1])
    field = owner.model_fields[str(loc[-1])] if owner else None
    sections = _sections_in(field.annotation) if field else []
    tags = [tag for each in sections for tag in getattr(each.model_fields["type"].annotation, "__args__", ())]
    return ", ".join(map(repr, tags))


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
