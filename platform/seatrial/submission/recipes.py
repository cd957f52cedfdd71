"""Which kind a YAML file is, and what runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from seatrial.config.jobs import JobsConfig
from seatrial.config.load import load
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial.config.section import Section
from seatrial.config.service import ServiceConfig
from seatrial.config.tune import TuneRecipe
from seatrial.errors import UserError

TRAIN_MODULE = "seatrial_jobs.train"
PRETRAIN_MODULE = "seatrial_jobs.pretrain"
TUNE_MODULE = "seatrial_jobs.tune"
SWEEP_MODULE = "seatrial_jobs.sweep"
MODULES: dict[str, type[TrainRecipe | PretrainRecipe]] = {
    TRAIN_MODULE: TrainRecipe,
    PRETRAIN_MODULE: PretrainRecipe,
    TUNE_MODULE: TuneRecipe,
}
PYTHONS = ("python", "python3", sys.executable)

# A key of the top level → the kind of file that has it; the first one decides.
SIGNS: dict[str, type[Section]] = {
    "search": TuneRecipe,
    "register_as": PretrainRecipe,
    "architecture": PretrainRecipe,
    "teams": JobsConfig,
    "gpu_hour_price": JobsConfig,
    "grows_to": JobsConfig,
    "engine": ServiceConfig,
    "http": ServiceConfig,
    "data": TrainRecipe,
    "method": TrainRecipe,
}


def kind_of(path: Path) -> type[Section]:
    """The section that the file at ``path`` must satisfy; a fine-tuning recipe unless it says otherwise.

    Raises:
        UserError: the file cannot be read. Bad YAML is left to the loader, which names the line.
    """
    return _shown_kind(path) or TrainRecipe


def _shown_kind(path: Path) -> type[Section] | None:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({why}): give the path of a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    keys = values if isinstance(values, dict) else {}
    return next((kind for sign, kind in SIGNS.items() if sign in keys), None)


def load_service(path: Path) -> ServiceConfig:
    """The validated service file.

    Raises:
        UserError: the file is missing, or is a recipe.
        ConfigError: one problem for each bad field.
    """
    if _shown_kind(path) in (TrainRecipe, PretrainRecipe, TuneRecipe):
        raise UserError(f"{path}: a recipe, not a service file: `seatrial train {path}`")
    return load(path, ServiceConfig)


def load_recipe(path: Path) -> tuple[TrainRecipe | PretrainRecipe, str]:
    """The validated recipe, and the module that runs it.

    Raises:
        UserError: the file is missing, or is a service file.
        ConfigError: one problem for each bad field.
    """
    kind = kind_of(path)
    if kind is PretrainRecipe:
        return load(path, PretrainRecipe), PRETRAIN_MODULE
    if kind is TuneRecipe:
        return load(path, TuneRecipe), TUNE_MODULE
    if kind is ServiceConfig:
        raise UserError(f"{path}: a service file, not a recipe: `seatrial deploy {path}`")
    return load(path, TrainRecipe), TRAIN_MODULE


@dataclass(frozen=True)
class RecipeCommand:
    """`python -m MODULE FILE [--force]`, taken apart."""

    recipe: TrainRecipe | PretrainRecipe
    module: str
    file: Path
    force: bool


def in_command(command: Sequence[str], *, travels: bool) -> RecipeCommand | None:
    """The recipe that a command runs as our jobs do; None for any other command.

    Where the folder ``travels`` with the job, a recipe elsewhere is the other machine's.

    Raises:
        UserError: the file is missing.
        ConfigError: one problem for each bad field.
    """
    rest = [word for word in command[3:] if word != "--force"]
    if len(rest) != 1 or command[0] not in PYTHONS or command[1] != "-m" or command[2] not in MODULES:
        return None
    file = Path(rest[0])
    if travels and file.is_absolute():
        return None
    return RecipeCommand(load(file, MODULES[command[2]]), command[2], file, "--force" in command[3:])
