"""The cause of an end is found in a log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from seatrial.monitoring.logs import JsonFormatter, cause, complaint, configure, plain, tail


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Traceback (most recent call last):", "  x", "ValueError: boom", "bye"], "ValueError: boom"),
        (
            ["ray.exceptions.RayTaskError(KeyError): at f", "done"],
            "ray.exceptions.RayTaskError(KeyError): at f",
        ),
        (
            ["ERROR: [Errno 98] address already in use", "INFO: shutting down"],
            "ERROR: [Errno 98] address already in use",
        ),
        (["all is well", ""], "all is well"),
        (["\x1b[31mOSError: red\x1b[0m"], "OSError: red"),
        (['::seatrial:: {"event":"done"}'], None),
        ([], None),
    ],
)
def test_the_line_that_says_why(lines: list[str], expected: str | None) -> None:
    assert cause(lines) == expected


def test_a_last_line_is_no_complaint() -> None:
    lines = ["INFO: 127.0.0.1 GET /health 200 OK"]
    assert complaint(lines) is None
    assert cause(lines) == lines[0]
    assert complaint(["OSError: no space left", *lines]) == "OSError: no space left"


def test_a_tail_is_the_last_lines_without_colours(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"\x1b[1mline {number}\x1b[0m\n" for number in range(5000)))
    assert tail(log, 2) == ["line 4998", "line 4999"]
    assert tail(tmp_path / "missing.log") == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[31mred\x1b[0m and \x1b[?25lhidden", "red and hidden"),
        ("a\x1b]0;title\x07b\x1b]52;c;aGk=\x1b\\c", "abc"),
        ("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("a\x9b2Jb\x1bPq\x1b\\c\x1bcd\x1b(Be", "abcde"),
        ("never ended \x1b]0;all of it", "never ended "),
        ("10 %\r50 %\r100 %\r", "100 %"),
        ("a\x00\x07\x08b\ud800\tc", "ab\tc"),
        ("plain \N{LATIN SMALL LETTER E WITH ACUTE} [31m", "plain \N{LATIN SMALL LETTER E WITH ACUTE} [31m"),
    ],
)
def test_a_log_moves_no_terminal(line: str, shown: str) -> None:
    assert plain(line) == shown


def test_json_logs_are_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("seatrial", logging.INFO, "", 0, "a %s", ("b",), None)
    found = json.loads(JsonFormatter("controller").format(record))
    assert (found["part"], found["level"], found["message"]) == ("controller", "INFO", "a b")


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure("x")
    configure("y").info("hello")
    said = capsys.readouterr().err
    assert said.count("hello") == 1
    assert " INFO y: hello" in said
