"""Reading YAML: every bad field at once, each with its line, value and fix."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.config.load import load, loads
from seatrial.config.recipe import TrainRecipe
from seatrial.config.service import ServiceConfig
from seatrial.errors import ConfigError, UserError

GOOD = """\
name: demo
service: support-chat
model: {base: models:/tiny-base/1}
data: {train: pairs.jsonl}
method:
  type: lora
  rank: 8
run:
  steps: 10
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text, TrainRecipe, file="r.yaml")
    return str(caught.value).splitlines()


def test_a_good_recipe_loads_with_its_defaults():
    recipe = loads(GOOD, TrainRecipe)
    assert recipe.method.type == "lora"
    assert recipe.method.rank == 8
    assert recipe.method.alpha == 32.0


def test_all_problems_are_reported_at_once_in_file_order():
    text = GOOD.replace("rank: 8", "rnak: 8").replace("name: demo", "name: Not A Slug") + "  clip_norm: -1\n"
    found = problems(text)
    assert [line.split(":")[1] for line in found] == ["1", "7", "10"]
    assert "did you mean `rank`?" in found[1]
    assert found[2].startswith("r.yaml:10: run.clip_norm: -1: ")


def test_a_missing_field_points_at_its_section():
    assert problems(GOOD.replace("  steps: 10", "  seed: 1")) == [
        "r.yaml:8: run: a mapping: give exactly one of `steps` and `epochs`"
    ]
    assert problems(GOOD.replace("data: {train: pairs.jsonl}", "data: {}")) == [
        "r.yaml:4: data.train: missing: add `train`"
    ]


def test_an_unknown_method_names_the_known_ones():
    (line,) = problems(GOOD.replace("type: lora", "type: qlora"))
    assert "'full'" in line
    assert "'lora'" in line
    assert line.startswith("r.yaml:5: method")


def test_a_field_given_twice_is_refused():
    assert "r.yaml:10: run.steps: given twice: keep one of the two" in problems(GOOD + "  steps: 20\n")


def test_rules_between_sections_are_reported():
    (line,) = problems(GOOD + "resources: {workers: 3}\n")
    assert "run.batch_rows (8) must be a multiple of" in line


def test_broken_yaml_names_the_line():
    assert problems("name: [1\nservice: x\n")[0].startswith("r.yaml:2: YAML:")


def test_yaml_tags_never_make_objects(tmp_path: Path):
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match=r"evil.yaml:1: YAML"):
        load(path, TrainRecipe)


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(tmp_path / "none.yaml", TrainRecipe)
    assert "\n" not in str(caught.value)


def test_a_service_that_nobody_may_call_is_refused():
    with pytest.raises(ConfigError, match="allow_anonymous"):
        loads("name: a\nengine: {base: b}\nhttp: {}\n", ServiceConfig)


@given(st.text(max_size=200))
def test_any_text_gives_a_config_error(text: str):
    with pytest.raises(ConfigError) as caught:  # no text of 200 characters holds every required field
        loads(text, TrainRecipe)
    assert caught.value.problems
