"""Reading YAML: every bad field at once, each with its line, value and fix."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.config.load import load, loads
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
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
    assert problems(GOOD.replace("type: lora", "type: qlora")) == [
        "r.yaml:6: method.type: 'qlora': give `type` as one of 'full', 'lora'"
    ]


def test_a_missing_method_type_names_the_known_ones():
    assert problems(GOOD.replace("type: lora", "alpha: 1")) == [
        "r.yaml:5: method.type: missing: give `type` as one of 'full', 'lora'"
    ]


def test_a_field_of_several_kinds_is_one_problem():
    assert problems(GOOD.replace("rank: 8", "targets: 5")) == [
        "r.yaml:7: method.targets: 5: should be a list, or should be 'all-linear'"
    ]
    assert problems(GOOD.replace("rank: 8", "targets: [q_proj, 2]")) == [
        "r.yaml:7: method.targets.1: 2: should be a valid string"
    ]


def test_a_switch_is_no_number():
    assert problems(GOOD.replace("steps: 10", "steps: yes") + "  clip_norm: off\n  recompute: on\n") == [
        "r.yaml:9: run.steps: True: should be a number",
        "r.yaml:10: run.clip_norm: False: should be greater than 0",
    ]


def test_a_field_given_twice_is_refused():
    assert "r.yaml:10: run.steps: given twice: keep one of the two" in problems(GOOD + "  steps: 20\n")


def test_rules_between_sections_are_reported():
    rule = "must be a multiple of resources.workers x run.accumulate"
    assert problems(GOOD + "  batch_rows: 7\n  accumulate: 2\n") == [
        f"r.yaml:10: run.batch_rows: 7: {rule} (2)"
    ]
    assert problems(GOOD + "resources: {workers: 3}\n") == [f"r.yaml:8: run.batch_rows: 8: {rule} (3)"]


@pytest.mark.parametrize("field", ["learning_rate", "clip_norm", "weight_decay", "epochs"])
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_that_are_none_are_refused(field: str, value: str):
    text = GOOD.replace("  steps: 10\n", "") if field == "epochs" else GOOD
    assert "should be a finite number" in problems(f"{text}  {field}: {value}\n")[0]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_has_63_bits(seed: int):
    assert problems(f"{GOOD}  seed: {seed}\n")[0].startswith(f"r.yaml:10: run.seed: {seed}: should be")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("heads: 5, kv_heads: 2, hidden_size: 160", "architecture.kv_heads: 2: must divide heads (5)"),
        ("heads: 5, kv_heads: 5", "architecture.hidden_size: 192: must be a multiple of heads (5)"),
    ],
)
def test_a_shape_that_no_llama_has_is_refused(shape: str, message: str):
    text = "name: a\nregister_as: b\ndata: {train: x}\nrun: {steps: 3}\narchitecture: {" + shape + "}\n"
    with pytest.raises(ConfigError) as caught:
        loads(text, PretrainRecipe, file="r.yaml")
    assert str(caught.value) == f"r.yaml:5: {message}"


@pytest.mark.parametrize(("name", "fix"), [("a--v1", "write a-v1"), ("v1", "v1-chat"), ("health", "a route")])
def test_a_service_does_not_take_the_name_of_a_route_or_of_a_versions_application(name: str, fix: str):
    with pytest.raises(ConfigError, match=fix) as caught:
        loads(f"name: {name}\nengine: {{base: b}}\nhttp: {{allow_anonymous: true}}\n", ServiceConfig)
    assert str(caught.value).startswith(f"<text>:1: name: '{name}': ")


def test_a_deadline_without_end_is_refused():
    text = "name: a\nengine: {base: b}\nhttp: {allow_anonymous: true}\ntrial: {deadline_h: .inf}\n"
    with pytest.raises(ConfigError, match=r"trial\.deadline_h: inf: should be a finite number"):
        loads(text, ServiceConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "  storage: 2024-13-45\n", "r.yaml:10: YAML: month must be in 1..12: 2024-13-45"),
        ("name: &a [*a]\n", "r.yaml:1: YAML: nested too deeply, or a value that holds itself"),
        ("&a [*a]\n", "r.yaml:1: file: list"),
        ("name: " + "[" * 3000, "r.yaml:1: YAML: nested too deeply"),
        ("name: x\nseed: " + "9" * 5000, "r.yaml:2: YAML: Exceeds the limit"),
    ],
)
def test_yaml_that_python_cannot_take_is_one_line(text: str, message: str):
    (line,) = problems(text)
    assert line.startswith(message)
    assert len(line) < 300


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
