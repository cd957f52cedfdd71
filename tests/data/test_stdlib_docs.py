"""The standard library's documentation as data: thousands of pairs, and nothing held out leaks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seatrial_jobs.data.read import read_examples
from seatrial_jobs.data.stdlib_docs import TASK_SHARES, Summary, build, summary_of
from seatrial_jobs.data.stdlib_symbols import symbols

Rows = list[dict[str, str]]


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def test_there_are_thousands_of_pairs_of_every_task(
    made: Summary, train_rows: Rows, heldout_rows: Rows
) -> None:
    assert made.train_pairs == len(train_rows) > 8000
    assert made.heldout_pairs == len(heldout_rows) > 900
    assert set(made.tasks) == set(TASK_SHARES) == {row["task"] for row in heldout_rows}
    for path in (made.train, made.heldout, made.text):
        read = read_examples(path)
        assert read.bad == []
        assert read.rows_read == len(read.examples) > 0


def test_no_symbol_and_no_prompt_is_on_both_sides(train_rows: Rows, heldout_rows: Rows) -> None:
    for field in ("symbol", "prompt"):
        assert not {row[field] for row in train_rows} & {row[field] for row in heldout_rows}


def test_no_prompt_is_asked_twice(train_rows: Rows, heldout_rows: Rows) -> None:
    prompts = [row["prompt"] for row in train_rows + heldout_rows]
    assert len(prompts) == len(set(prompts))


def test_no_summary_of_a_heldout_symbol_is_learnt(
    train_rows: Rows, heldout_rows: Rows, text_rows: list[str]
) -> None:
    asked = [row for row in heldout_rows if row["task"] == "summary_to_module"]
    secret = {words(row["prompt"].removesuffix(" Which module does this?")) for row in asked}
    assert len(secret) > 300
    shown = {words(row["prompt"].removesuffix(" Which module does this?")) for row in train_rows}
    shown |= {words(row["response"]) for row in train_rows}
    assert not secret & shown
    text = "\n".join(words(row) for row in text_rows)
    assert not [summary for summary in secret if summary in text]


def test_no_name_of_a_heldout_symbol_heads_a_text(heldout_rows: Rows, text_rows: list[str]) -> None:
    secret = {row["symbol"] for row in heldout_rows}
    headings = set()
    for row in text_rows:
        for line in row.splitlines():
            headings.add(line.split("(")[0])
            if entry := re.fullmatch(r"(\S+) \((\S+)\)", line):
                headings.add(f"{entry[2]}.{entry[1]}")
    assert not secret & headings


def test_the_text_does_not_show_the_questions(text_rows: list[str]) -> None:
    questions = ("which module?", "Which module does this?", "what does it do?", "which parameters?")
    assert not [row for row in text_rows if any(question in row for question in questions)]


def test_the_same_python_and_seed_give_the_same_bytes(made: Summary, tmp_path: Path) -> None:
    again = build(tmp_path / "again.jsonl")
    assert again.digest == made.digest
    assert again.train.read_bytes() == made.train.read_bytes()


def test_python_modules_are_parsed_and_never_imported() -> None:
    program = (
        "import sys; from seatrial_jobs.data.stdlib_symbols import symbols; symbols();"
        "print({'turtle', 'tkinter', 'pdb', 'this', 'antigravity', 'mailbox', 'imaplib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_symbols_are_named_as_users_import_them() -> None:
    found = {symbol.path: symbol for symbol in symbols()}
    assert "asyncio.Lock" in found  # defined in asyncio.locks
    assert "os.path.join" in found  # defined in posixpath
    assert "os.fork" in found  # defined in C
    assert found["zipfile.ZipFile.writestr"].parameters is not None
    assert found["zipfile.ZipFile.writestr"].parameters.startswith("(zinfo_or_arcname, data")
    assert not [path for path in found if path.startswith(("test.", "idlelib.", "lib2to3."))]
    for symbol in list(found.values())[::50]:
        if symbol.parameters and "<" not in symbol.parameters:
            ast.parse(f"def f{symbol.parameters.replace('$', '')}: ...")


@pytest.mark.parametrize(
    ("doc", "summary"),
    [
        ("Return the sine of x (measured in radians).", "Return the sine of x (measured in radians)."),
        (
            "Write a file\ninto the archive.  The contents may\nbe str.\n\nMore.",
            "Write a file into the archive.",
        ),
        ("B.find(sub) -> int\n\nReturn the lowest index.", "Return the lowest index."),
        ("s(tep)", None),
        (">>> import io\n>>> io", None),
        ("Too short", None),
    ],
)
def test_a_summary_is_the_first_sentence(doc: str, summary: str | None) -> None:
    assert summary_of(doc) == summary


def test_the_command_says_what_it_wrote_and_refuses_another_ending(tmp_path: Path, made: Summary) -> None:
    def run(out: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "seatrial_jobs.data.stdlib_docs", str(out)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(tmp_path / "docs.jsonl")
    assert done.returncode == 0
    assert f"{made.train_pairs} pairs" in done.stdout
    assert made.digest in done.stdout
    refused = run(tmp_path / "docs.csv")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"OUT: {tmp_path / 'docs.csv'}: must end in .jsonl\n"
