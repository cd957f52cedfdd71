"""What the tests of the data share: one build of the standard library's documentation, one tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from seatrial_jobs.data.stdlib_docs import Summary, build
from seatrial_jobs.tokenizer import train_tokenizer

settings.register_profile("no-clock", deadline=None, derandomize=True)
settings.load_profile("no-clock")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return build(tmp_path_factory.mktemp("stdlib") / "docs.jsonl")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    texts = ["Return the sine of x.", "Which module has ZipFile.writestr?", "zipfile math asyncio"] * 5
    return train_tokenizer(texts, 400)


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def train_rows(made: Summary) -> list[dict[str, str]]:
    return rows_of(made.train)


@pytest.fixture(scope="session")
def heldout_rows(made: Summary) -> list[dict[str, str]]:
    return rows_of(made.heldout)


@pytest.fixture(scope="session")
def text_rows(made: Summary) -> list[str]:
    return [row["text"] for row in rows_of(made.text)]
