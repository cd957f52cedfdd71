"""`seatrial schema`"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.config.jobs import JobsConfig
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial.config.section import Section
from seatrial.config.service import ServiceConfig
from seatrial.config.tune import TuneRecipe


class Kind(StrEnum):
    """The files that people write."""

    RECIPE = "recipe"
    SEARCH = "search"
    PRETRAIN = "pretrain"
    SERVICE = "service"
    JOBS = "jobs"


SECTIONS: dict[Kind, type[Section]] = {
    Kind.RECIPE: TrainRecipe,
    Kind.SEARCH: TuneRecipe,
    Kind.PRETRAIN: PretrainRecipe,
    Kind.SERVICE: ServiceConfig,
    Kind.JOBS: JobsConfig,
}


def command(
    kind: Annotated[Kind, typer.Argument(help="Which file's schema.")] = Kind.RECIPE,
) -> None:
    """Print the JSON schema of a configuration file.

    Editors complete and check YAML with it.
    """
    say(json.dumps(SECTIONS[kind].model_json_schema(), indent=2))
