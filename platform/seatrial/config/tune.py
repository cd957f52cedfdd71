"""A recipe with a `search` section, and what its space must keep to."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import (
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from seatrial.config.recipe import TrainRecipe
from seatrial.config.run import RunSection
from seatrial.config.search import Choice, Domain, LogUniform, SearchSection, Uniform
from seatrial.config.section import Section

SEARCHED_RUN = (
    "learning_rate",
    "warmup_share",
    "weight_decay",
    "clip_norm",
    "batch_rows",
    "accumulate",
    "steps",
    "epochs",
    "seed",
    "precision",
)
"""Fields of `run` that shape the weights and leave the packed data as they are."""
CARRIED = ("run.learning_rate", "run.warmup_share", "run.clip_norm", "method.dropout")
"""What may change while weights and optimizer are carried on: what population-based training mutates."""

DOMAIN = TypeAdapter[Domain](Domain)
Loc = tuple[int | str, ...]
Fault = tuple[Loc, object, str]
"""Place below an entry, value, fix."""


class TuneRecipe(TrainRecipe):
    """`python -m seatrial_jobs.tune`: train a recipe with different values, and register the best."""

    search: SearchSection
    """What is tried out."""

    @field_validator("search", mode="wrap")
    @classmethod
    def _names_fields(
        cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> SearchSection:
        """Every path is a field of this recipe and every value one of its type; values come out typed."""
        search: SearchSection | None = None
        errors: list[InitErrorDetails] = []
        try:
            search = handler(value)
        except ValidationError as error:
            errors = [_again(detail) for detail in error.errors()]
        present: dict[str, type[Section]] = {"run": RunSection}
        if "method" in info.data:
            present["method"] = type(info.data["method"])
        rules = _Rules(_fields(present), *(_type_in(value, part) for part in ("algorithm", "scheduler")))
        space: dict[str, Domain] = {}
        for path, domain in _entries(value):
            if "method" not in present and path.startswith("method."):
                continue  # the section itself is told of
            faults = list(rules.faults(path, domain))
            errors += [_detail(("space", path, *loc), wrong_value, fix) for loc, wrong_value, fix in faults]
            if domain is not None and not faults:
                space[path] = rules.typed(path, domain)
        if search is None or errors:
            raise ValidationError.from_exception_data("search", errors)
        return search.model_copy(update={"space": space})

    @model_validator(mode="after")
    def _each_value_fits(self) -> TuneRecipe:
        """Rules over several fields hold for every value, the recipe's own values beside it."""
        errors = []
        for path, domain in self.search.space.items():
            for loc, value in _points(domain):
                try:
                    self.with_values({path: value})
                except ValidationError as error:
                    found = error.errors()[0]
                    fix = found["msg"].removeprefix("Value error, ")
                    errors.append(_detail(("search", "space", path, *loc), value, fix))
        if errors:
            raise ValidationError.from_exception_data("recipe", errors)
        return self

    def with_values(self, values: Mapping[str, Any]) -> TrainRecipe:
        """The recipe of one trial: fields by their paths replaced, measured and kept as the scheduler needs.

        Raises:
            ValidationError: the values do not go together.
        """
        plain = self.model_dump(exclude={"search"})
        for path, value in values.items():
            root, _, name = path.partition(".")
            plain[root][name] = value
        scheduler = self.search.scheduler
        if scheduler.type == "pbt":
            plain["run"] |= {
                "evaluate_every": scheduler.interval_steps,
                "checkpoint_every": scheduler.interval_steps,
            }
        elif scheduler.type == "asha":
            every = plain["run"]["evaluate_every"] or scheduler.grace_steps
            plain["run"] |= {
                "evaluate_every": every,
                "checkpoint_every": plain["run"]["checkpoint_every"] or every,
            }
        return TrainRecipe.model_validate(plain)


def _fields(present: Mapping[str, type[Section]]) -> dict[str, FieldInfo]:
    """What can be searched, by its path."""
    found = {}
    for root, section in present.items():
        for name, field in section.model_fields.items():
            if name in SEARCHED_RUN if root == "run" else name != "type":
                found[f"{root}.{name}"] = field
    return found


@dataclass(frozen=True)
class _Rules:
    """What an entry of the space must keep to."""

    fields: Mapping[str, FieldInfo]
    algorithm: object
    scheduler: object

    def faults(self, path: str, domain: Domain | None) -> Iterator[Fault]:
        """What is wrong with an entry; of one whose domain cannot be read, only its path is looked at."""
        if path not in self.fields:
            close = difflib.get_close_matches(path, self.fields, n=1, cutoff=0.6)
            known = "can be searched: " + ", ".join(self.fields)
            yield (), path, f"did you mean `{close[0]}`?" if close else known
        elif self.scheduler == "pbt" and path not in CARRIED:
            yield (), path, f"pbt carries weights on: search {', '.join(CARRIED)} with it"
        elif domain is None:
            return
        elif self.algorithm == "grid" and not isinstance(domain, Choice):
            yield ("type",), domain.type, "grid takes `type: choice` with `values`"
        else:
            yield from self._values(path, domain)

    def typed(self, path: str, domain: Domain) -> Domain:
        """The domain with the values that it lists as the field's type has them."""
        if not isinstance(domain, Choice):
            return domain
        values = tuple(self._accepts(path).validate_python(value) for value in domain.values)
        return domain.model_copy(update={"values": values})

    def _values(self, path: str, domain: Domain) -> Iterator[Fault]:
        accepts = self._accepts(path)
        faults = list(_refused(accepts, _points(domain)))
        if not faults and isinstance(domain, Uniform | LogUniform):
            between = domain.low + (domain.high - domain.low) / math.pi
            if list(_refused(accepts, [((), between)])):
                yield ("type",), domain.type, "the field takes whole numbers: use int_uniform or choice"
        yield from faults

    def _accepts(self, path: str) -> TypeAdapter[Any]:
        annotation = self.fields[path].rebuild_annotation()
        return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def _refused(accepts: TypeAdapter[Any], points: Iterable[tuple[Loc, Any]]) -> Iterator[Fault]:
    for loc, value in points:
        try:
            accepts.validate_python(value)
        except ValidationError as error:
            yield loc, value, error.errors()[0]["msg"].replace("Input should", "should")


def _points(domain: Domain) -> list[tuple[Loc, Any]]:
    """Values of a domain that stand for all, and where they are written."""
    if isinstance(domain, Choice):
        return [(("values", index), value) for index, value in enumerate(domain.values)]
    return [(("low",), domain.low), (("high",), domain.high)]


def _entries(value: Any) -> Iterator[tuple[str, Domain | None]]:
    """Paths and domains of a search as it was written; ``None`` for a domain that cannot be read."""
    space = value.get("space") if isinstance(value, Mapping) else None
    for path, written in space.items() if isinstance(space, Mapping) else ():
        try:
            yield str(path), DOMAIN.validate_python(written)
        except ValidationError:
            yield str(path), None


def _type_in(value: Any, part: str) -> object:
    section = value.get(part) if isinstance(value, Mapping) else None
    return section.get("type") if isinstance(section, Mapping) else None


def _again(detail: ErrorDetails) -> InitErrorDetails:
    """The same error, to be raised with others."""
    kind: Any = detail["type"]
    context = detail.get("ctx", {})
    if kind == "rule":
        kind = PydanticCustomError("rule", "{fix}", context)
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context)


def _detail(loc: Loc, value: object, fix: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("search", "{fix}", {"fix": fix, "value": value}), loc=loc, input=value
    )
