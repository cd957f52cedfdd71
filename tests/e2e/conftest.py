"""One run of the whole loop, small, on a stack of its own; every test of the folder looks at it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from demo.loop import Loop, Report, Scale
from demo.readers import Reply
from demo.stack import Stack, down, up

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Finished:
    """The loop after its verdict; the stack still runs."""

    stack: Stack
    loop: Loop
    report: dict[str, object]
    replies: list[Reply]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    work = tmp_path_factory.mktemp("e2e")
    scale = Scale(
        base=HERE / "recipes" / "base.yaml",
        first=HERE / "recipes" / "first.yaml",
        second=HERE / "recipes" / "second.yaml",
        service=HERE / "recipes" / "service.yaml",
        most_units=480,
    )
    try:
        stack = up(work)
        report = Report()
        with closing(Loop(stack, scale, report, Console(file=sys.stdout, highlight=False))) as loop:
            loop.run()
            yield Finished(stack, loop, report.values, loop.replies)
    finally:
        down(work)
