"""README and docs: links lead somewhere, YAML blocks validate, commands exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seatrial.cli.main import VERBS, app
from seatrial.config.jobs import JobsConfig
from seatrial.config.load import loads
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial.config.service import ServiceConfig

ROOT = Path(__file__).parent.parent
GROUPS = [name for name in VERBS if hasattr(import_module(f"seatrial.cli.{name}"), "app")]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SECTIONS = {"recipe": TrainRecipe, "pretrain": PretrainRecipe, "service": ServiceConfig, "jobs": JobsConfig}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize("kind", SECTIONS)
def test_yaml_blocks_are_valid_files(page: Path, kind: str):
    for block in blocks(page, f"yaml {kind}"):
        assert loads(block, SECTIONS[kind], file=page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["seatrial"]:
                continue
            verb = words[1:3] if words[1] in GROUPS else words[1:2]
            helped = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
            assert helped.exit_code == 0, line
            for option in (word for word in words[2:] if word.startswith("--")):
                assert option in helped.output, line


def test_files_named_in_the_readme_exist():
    named = re.findall(r"(?<![\w/])(?:recipes|demo|benchmarks)/[\w./-]+", (ROOT / "README.md").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
