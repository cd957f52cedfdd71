"""Methods of other packages: real distributions on the path of a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """\
name: demo
service: support-chat
model: {base: b}
data: {train: pairs.jsonl}
method:
  type: prefix
  length: 7
run: {steps: 10}
"""
SECTION = """\
from typing import Literal
from seatrial.config.section import Section

class PrefixMethod(Section):
    "Trained tokens before the prompt."

    type: Literal["prefix"]
    length: int = 4
"""
METHOD = """\
class Prefix:
    kind, rank, trains_base = "adapter", None, False

    def __init__(self, section):
        self.section = section
"""
LOAD = """\
import sys
from seatrial.config.load import loads
from seatrial.config.recipe import TrainRecipe
from seatrial.errors import UserError
try:
    recipe = loads(sys.stdin.read(), TrainRecipe, file="r.yaml")
except UserError as error:
    sys.exit(str(error))
assert "torch" not in sys.modules
from seatrial_jobs import methods
print(type(recipe.method).__name__, methods.build(recipe.method).section.length)
"""


@pytest.fixture
def install(tmp_path: Path):
    """Make a distribution with a section and a method, as an installer leaves it."""

    def make(section: str = SECTION, name: str = "my_methods", sections: str = "") -> None:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "section.py").write_text(section)
        (package / "prefix.py").write_text(METHOD)
        information = tmp_path / f"{name}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[seatrial.method_sections]\nprefix = {name}.section:PrefixMethod\n{sections}"
            f"[seatrial.methods]\nprefix = {name}.prefix:Prefix\n"
        )

    return make


def load(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", LOAD]
    return subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)


def test_a_recipe_names_a_method_of_an_installed_package(install, tmp_path: Path):
    install()
    found = load(RECIPE, tmp_path)
    assert found.stdout == "PrefixMethod 7\n", found.stderr


def test_its_fields_are_checked_and_it_is_among_the_known_ones(install, tmp_path: Path):
    install()
    found = load(RECIPE.replace("length", "lenght"), tmp_path)
    assert found.stderr == "r.yaml:7: method.lenght: unknown field: did you mean `length`?\n"
    found = load(RECIPE.replace("type: prefix", "type: sufix"), tmp_path)
    assert "r.yaml:6: method.type: 'sufix': give `type` as one of 'full', 'lora', 'prefix'" in found.stderr


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ("import no_such_module\n", "cannot be imported (ModuleNotFoundError: No module named"),
        ("def (\n", "cannot be imported (SyntaxError"),
        ("PrefixMethod = 3\n", "is no subclass of seatrial.config.section.Section"),
        (SECTION.replace('Literal["prefix"]', 'Literal["other"]'), "has no field `type: Literal['prefix']`"),
    ],
)
def test_a_package_that_cannot_be_read_is_named_and_disturbs_nobody_else(
    install, tmp_path: Path, section: str, reason: str
):
    install(section)
    found = load(RECIPE, tmp_path)
    assert len(found.stderr.splitlines()) == 1
    assert "r.yaml:6: method.type: 'prefix': prefix = my_methods.section:PrefixMethod of my_methods:" in (
        found.stderr
    )
    assert reason in found.stderr
    other = load(RECIPE.replace("type: prefix", "type: lora").replace("  length: 7\n", ""), tmp_path)
    assert "r.yaml" not in other.stderr


def test_a_name_that_is_taken_is_refused_and_seatrials_own_stay(install, tmp_path: Path):
    install(sections="lora = my_methods.section:PrefixMethod\n")
    install(name="more_methods")
    found = load(RECIPE, tmp_path)
    assert "two packages give this method" in found.stderr
    found = load(RECIPE.replace("type: prefix", "type: lora").replace("length: 7", "rank: 0"), tmp_path)
    assert "r.yaml:7: method.rank: 0: should be greater than or equal to 1" in found.stderr
