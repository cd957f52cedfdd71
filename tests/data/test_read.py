"""Reading: every row is kept or reported, never lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.config.data import DataSection
from seatrial.errors import UserError
from seatrial_jobs.data.read import Example, Message, digest, leave_out, load_split, read_examples

GOOD = '{"prompt": "Which module has sin?", "response": "math", "task": "name_to_module"}'


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_pairs_messages_and_text_become_examples(tmp_path: Path) -> None:
    chat = json.dumps({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "sin?"},
        {"role": "assistant", "content": "math"},
    ]})  # fmt: skip
    path = write(tmp_path / "rows.jsonl", GOOD, "", chat, '{"text": "math.sin(x)"}')
    read = read_examples(path)
    assert read.bad == []
    assert read.rows_read == 3
    pair, conversation, text = read.examples
    assert pair == Example(
        (Message("user", "Which module has sin?"), Message("assistant", "math")),
        f"{path}:1",
    )
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.source == f"{path}:3"
    assert text.is_text
    assert text.response == "math.sin(x)"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "response": }', "is not JSON (Expecting value, column 29)"),
        (b'{"prompt": "\xff", "response": "b"}', "is not UTF-8 (byte 13 of the line)"),
        ("[1]", "is a list, not an object with `prompt` and `response`"),
        ('{"question": "a"}', "needs exactly one of `prompt`, `messages` and `text`, has none of them"),
        ('{"prompt": "a", "text": "b"}', "has `prompt` and `text`"),
        ('{"prompt": "a"}', "`response` is missing"),
        ('{"prompt": "a", "response": 7}', "`response` is a int, not a string"),
        ('{"prompt": " ", "response": "b"}', "`prompt` is empty"),
        ('{"prompt": "\\ud800", "response": "b"}', "half of a surrogate pair"),
        ('{"messages": "hello"}', "`messages` must be a list of at least two messages"),
        ('{"messages": [{"role": "user", "content": "a"}, 3]}', "`messages[1]` is a int"),
        (
            '{"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "`messages[0].role` is 'robot', not one of system, user, assistant, tool",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "the last message is the user's, not the assistant's",
        ),
        ("[" * 100_000, "is not JSON that can be read (RecursionError"),
        ('{"prompt": ' + "9" * 5000 + "}", "is not JSON that can be read (ValueError"),
    ],
)
def test_a_bad_row_is_reported_with_file_line_and_reason(
    tmp_path: Path, line: str | bytes, reason: str
) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, line, GOOD)
    read = read_examples(path)
    assert len(read.examples) == 2
    assert read.rows_read == 3
    [bad] = read.bad
    assert (bad.file, bad.line) == (str(path), 2)
    assert reason in bad.reason
    assert str(bad).startswith(f"{path}:2: ")


def test_a_json_list_is_read_with_the_line_of_each_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", "[", GOOD + ",", "", '{"prompt": "b"},', GOOD, "]", "")
    read = read_examples(path)
    assert [example.source for example in read.examples] == [f"{path}:2", f"{path}:5"]
    assert [str(bad) for bad in read.bad] == [f"{path}:4: `response` is missing"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "rows.json:1: a .json file holds one list of rows"),
        (f"[{GOOD}\n{GOOD}]", "rows.json:2: is not JSON (Expecting ',' or ']')"),
        (f"[{GOOD},\n", "rows.json:2: is not JSON (Expecting value)"),
        (f"[{GOOD}] 3", "rows.json:1: is not JSON (Extra data)"),
        ("", "rows.json:1: a .json file holds one list of rows"),
    ],
)
def test_a_broken_json_list_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_examples(write(tmp_path / "rows.json", content))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "rows.csv", "."])
def test_a_path_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        read_examples(tmp_path / name)
    assert str(refused.value).startswith(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + GOOD.encode() + b"\r", GOOD)
    assert len(read_examples(path).examples) == 2


def test_max_rows_takes_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, "broken", GOOD, GOOD)
    read = read_examples(path, max_rows=3)
    assert (len(read.examples), len(read.bad), read.rows_read) == (2, 1, 3)


def test_the_digest_is_of_the_content_and_its_order(tmp_path: Path) -> None:
    other = '{"response": "os", "prompt": "Which module has fork?", "extra": 1}'
    one = read_examples(write(tmp_path / "one.jsonl", GOOD, other))
    same = read_examples(write(tmp_path / "two.json", f"[{GOOD}, {other}]"))
    swapped = read_examples(write(tmp_path / "three.jsonl", other, GOOD))
    assert one.digest == same.digest != swapped.digest


def test_bad_rows_beyond_the_allowed_number_refuse_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, *["broken"] * 25)
    section = DataSection(train=str(path), max_bad_rows=24)
    with pytest.raises(UserError) as refused:
        load_split(section, tmp_path)
    lines = str(refused.value).splitlines()
    assert lines[0] == "data: 25 bad rows, 24 allowed: mend them or raise data.max_bad_rows"
    assert lines[1].strip().startswith(f"{path}:2: is not JSON")
    assert len(lines) == 22
    assert lines[-1].strip() == "and 5 more"
    assert len(load_split(section.model_copy(update={"max_bad_rows": 25}), tmp_path).bad) == 25


def test_a_row_that_turns_out_bad_later_counts_with_the_others(tmp_path: Path) -> None:
    other = '{"prompt": "Which module has fork?", "response": "os"}'
    path = write(tmp_path / "rows.jsonl", GOOD, "broken", other)
    section = DataSection(train=str(path), heldout_share=0, max_bad_rows=2)
    split = load_split(section, tmp_path)
    left = leave_out(split, section, [(split.train[0], "has a turn too many")])
    assert [str(row) for row in left.bad][1:] == [f"{path}:1: has a turn too many"]
    assert (left.train, left.rows_read, left.rows_kept) == ([split.train[1]], 3, 1)
    assert left.digest not in ("", split.digest)
    with pytest.raises(UserError, match="data: 2 bad rows, 1 allowed"):
        leave_out(split, section.model_copy(update={"max_bad_rows": 1}), [(split.train[0], "x")])
    with pytest.raises(UserError, match="holds no usable row"):
        leave_out(left, section.model_copy(update={"max_bad_rows": 3}), [(left.train[0], "x")])


def test_relative_paths_start_at_the_root_and_a_heldout_file_is_kept_apart(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD, GOOD)
    write(tmp_path / "held.jsonl", '{"prompt": "Which module has fork?", "response": "os"}')
    split = load_split(DataSection(train="train.jsonl", heldout="held.jsonl"), tmp_path)
    assert (len(split.train), len(split.heldout), split.rows_read, split.rows_kept) == (2, 1, 3, 3)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "empty.jsonl", "")
    write(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(UserError, match=r"^data.train: empty.jsonl: holds no usable row"):
        load_split(DataSection(train="empty.jsonl"), tmp_path)
    with pytest.raises(UserError, match=r"^data.heldout: empty.jsonl: holds no usable row"):
        load_split(DataSection(train="train.jsonl", heldout="empty.jsonl"), tmp_path)


@given(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=60), share=st.floats(0, 1))
def test_what_is_set_aside_shares_no_prompt_and_loses_no_row(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], share: float
) -> None:
    path = tmp_path_factory.mktemp("split") / "rows.jsonl"
    rows = [json.dumps({"prompt": f"p{number}", "response": f"r{i}"}) for i, number in enumerate(numbers)]
    write(path, *rows)
    split = load_split(DataSection(train=str(path), heldout_share=share), path.parent)
    assert sorted(e.response for e in split.train + split.heldout) == sorted(
        f"r{i}" for i in range(len(numbers))
    )
    assert not {e.prompt for e in split.train} & {e.prompt for e in split.heldout}
    assert split.train
    assert bool(split.heldout) == (share > 0 and len(set(numbers)) > 1)
    assert split.digest == load_split(DataSection(train=str(path), heldout_share=share), path.parent).digest


def test_the_digest_of_nothing_is_that_of_no_bytes() -> None:
    assert digest([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
