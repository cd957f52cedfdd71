"""Every recipe that we hand out is valid, and agrees with the data and the base that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.config.load import load
from seatrial.config.recipe import PretrainRecipe, Recipe, TrainRecipe
from seatrial.submission.recipes import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PATHS = sorted(RECIPES.glob("*.yaml"))


def read(path: Path) -> Recipe:
    return load_recipe(path)[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_loads(path: Path) -> None:
    assert read(path).name


def test_there_is_one_for_each_method_and_machine() -> None:
    methods = {recipe.method.type for recipe in map(read, PATHS) if isinstance(recipe, TrainRecipe)}
    assert methods == {"full", "lora"}
    assert {path.stem.rsplit("_", 1)[1] for path in PATHS} == {"cpu", "gpu"}


def test_names_are_distinct_since_a_name_is_part_of_a_jobs_identity() -> None:
    names = [read(path).name for path in PATHS]
    assert len(names) == len(set(names))


def test_the_tiny_recipes_build_on_the_base_that_pretraining_registers() -> None:
    base = load(RECIPES / "pretrain_tiny_cpu.yaml", PretrainRecipe)
    for path in PATHS:
        recipe = read(path)
        if isinstance(recipe, TrainRecipe) and "tiny" in path.stem:
            assert recipe.model.base == f"models:/{base.register_as}@champion"
            assert recipe.service == "stdlib-helper"
            assert recipe.run.seq_tokens + recipe.gate.max_new_tokens <= base.architecture.max_positions
            assert recipe.data.train == base.data.train.replace(".text", "")
            assert recipe.data.heldout == base.data.train.replace(".text", ".heldout")
