"""Read training examples, and say which rows could not be read and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seatrial.config.data import DataSection
from seatrial.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
TEXT_ROLE = "text"
"""Role of the only message of a plain text row; its whole content is learnt."""
SHOWN_BAD_ROWS = 20


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is the assistant's, or a plain text (one message of role `text`)."""

    messages: tuple[Message, ...]
    source: str
    """Where it was read, as `file:line`."""

    @property
    def line(self) -> int:
        """The line of its file, from 1."""
        return int(self.source.rpartition(":")[2])

    @property
    def is_text(self) -> bool:
        """Whether this is plain text rather than a conversation."""
        return self.messages[0].role == TEXT_ROLE

    @property
    def response(self) -> str:
        """What the model shall answer."""
        return self.messages[-1].content

    @property
    def prompt(self) -> str:
        """The turns before the response, as one canonical string; for plain text, the text itself."""
        turns = self.messages if self.is_text else self.messages[:-1]
        return _canonical(turns)


@dataclass(frozen=True)
class BadRow:
    """A row that was left out. ``line`` counts from 1."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class ReadResult:
    """What one file holds. ``digest`` is the SHA-256 of the kept conversations, in order."""

    examples: list[Example]
    bad: list[BadRow]
    rows_read: int
    digest: str


@dataclass(frozen=True)
class Split:
    """Examples to learn from and examples to measure on. ``rows_kept`` counts both."""

    train: list[Example]
    heldout: list[Example]
    rows_read: int
    rows_kept: int
    bad: list[BadRow]
    digest: str


def read_examples(path: Path, *, max_rows: int | None = None) -> ReadResult:
    """Read `.jsonl` (a row a line) or `.json` (a list of rows).

    A row is `{"prompt", "response"}`, `{"messages": [{"role", "content"}, ...]}` or `{"text"}`; other fields
    are ignored. ``max_rows`` stops after so many rows, readable or not.

    Raises:
        UserError: the file is missing, is no such file, or a `.json` file is no list.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"{path}: files of type {path.suffix or '(none)'} are not read: use .jsonl or .json")
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # a zero byte in it is no OSError
        what = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"{path}: {what}: give the path of a .jsonl or .json file") from error
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    rows = _json_rows(path, raw) if path.suffix == ".json" else _jsonl_rows(raw)
    examples: list[Example] = []
    bad: list[BadRow] = []
    rows_read = 0
    for line, value in rows:
        if max_rows is not None and rows_read >= max_rows:
            break
        rows_read += 1
        parsed = value if isinstance(value, _Reason) else _parse(value, f"{path}:{line}")
        if isinstance(parsed, _Reason):
            bad.append(BadRow(str(path), line, parsed))
        else:
            examples.append(parsed)
    return ReadResult(examples, bad, rows_read, digest(examples))


def load_split(section: DataSection, root: Path) -> Split:
    """Read the files of a recipe's `data`; relative paths start at ``root``.

    Without `data.heldout`, examples are set aside by a hash of their prompt, so that equal prompts stay
    together and the choice does not depend on their order.

    Raises:
        UserError: a file is missing, holds no usable row, or more than `data.max_bad_rows` rows are bad.
    """
    read = _read("data.train", section.train, root, max_rows=section.max_rows)
    held = _read("data.heldout", section.heldout, root) if section.heldout else None
    bad = read.bad + (held.bad if held else [])
    if len(bad) > section.max_bad_rows:
        raise UserError(_too_many(bad, section.max_bad_rows))
    _refuse_empty("data.train", section.train, read)
    if held is not None:
        _refuse_empty("data.heldout", str(section.heldout), held)
        train, heldout = read.examples, held.examples
    else:
        train, heldout = _set_aside(read.examples, section.heldout_share)
    return _split(train, heldout, read.rows_read + (held.rows_read if held else 0), bad)


def _read(field: str, value: str, root: Path, *, max_rows: int | None = None) -> ReadResult:
    if "://" in value:
        raise UserError(f"{field}: {value}: addresses are not read: give the path of a file")
    try:
        return read_examples(root / value, max_rows=max_rows)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def leave_out(split: Split, section: DataSection, wrong: Sequence[tuple[Example, str]]) -> Split:
    """The split without examples that turned out to be of no use, each with the reason.

    Raises:
        UserError: more rows than `data.max_bad_rows` are bad by now, or none is left to learn from.
    """
    if not wrong:
        return split
    bad = split.bad + [_bad_row(example, reason) for example, reason in wrong]
    if len(bad) > section.max_bad_rows:
        raise UserError(_too_many(bad, section.max_bad_rows))
    gone = {id(example) for example, _ in wrong}
    train, heldout = (
        [example for example in part if id(example) not in gone] for part in (split.train, split.heldout)
    )
    if not train:
        raise UserError(f"data.train: {section.train}: holds no usable row: give a file with rows")
    return _split(train, heldout, split.rows_read, bad)


def _bad_row(example: Example, reason: str) -> BadRow:
    return BadRow(example.source.rpartition(":")[0], example.line, reason)


def _split(train: list[Example], heldout: list[Example], rows_read: int, bad: list[BadRow]) -> Split:
    both = hashlib.sha256(f"{digest(train)} {digest(heldout)}".encode()).hexdigest()
    return Split(train, heldout, rows_read, len(train) + len(heldout), bad, both)


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 of the conversations, in order; where they were read does not matter."""
    total = hashlib.sha256()
    for example in examples:
        total.update(_canonical(example.messages).encode() + b"\n")
    return total.hexdigest()


class _Reason(str):
    """Why a row is left out."""


def _jsonl_rows(raw: bytes) -> Iterator[tuple[int, object]]:
    for line, content in enumerate(raw.split(b"\n"), start=1):
        if content.strip():
            yield line, _decode(content)


def _decode(content: bytes) -> object:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _Reason(f"is not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return _Reason(f"is not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:
        return _Reason(f"is not JSON that can be read ({type(error).__name__}: {error})")


def _json_rows(path: Path, raw: bytes) -> Iterator[tuple[int, object]]:
    """Items of a JSON list with the line each begins on."""
    decoder = json.JSONDecoder()
    line, counted, at = 1, 0, 0
    try:
        text = raw.decode("utf-8")
        at = _skip_space(text, 0)
        if text[at : at + 1] != "[":
            raise UserError(f"{path}:1: a .json file holds one list of rows: write [...] or use .jsonl")
        at = _skip_space(text, at + 1)
        while text[at : at + 1] != "]":
            value, end = decoder.raw_decode(text, at)
            line, counted = line + text.count("\n", counted, at), at
            yield line, value
            at = _skip_space(text, end)
            if text[at : at + 1] == ",":
                at = _skip_space(text, at + 1)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if _skip_space(text, at + 1) != len(text):
            raise json.JSONDecodeError("Extra data", text, at + 1)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: is not JSON ({error.msg}): mend the file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{line}: cannot be read ({error}): write UTF-8 JSON") from error


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in " \t\r\n":
        at += 1
    return at


def _parse(value: object, source: str) -> Example | _Reason:
    if not isinstance(value, dict):
        return _Reason(f"is a {type(value).__name__}, not an object with `prompt` and `response`")
    forms = [form for form in ("messages", "prompt", "text") if form in value]
    if len(forms) != 1:
        found = " and ".join(f"`{form}`" for form in forms) or "none of them"
        return _Reason(f"needs exactly one of `prompt`, `messages` and `text`, has {found}")
    messages = {"messages": _conversation, "prompt": _pair, "text": _text}[forms[0]](value)
    if isinstance(messages, _Reason):
        return messages
    return Example(messages, source)


def _pair(row: Mapping[str, object]) -> tuple[Message, ...] | _Reason:
    for field in ("prompt", "response"):
        if problem := _text_problem(field, row.get(field)):
            return problem
    return (Message("user", str(row["prompt"])), Message("assistant", str(row["response"])))


def _text(row: Mapping[str, object]) -> tuple[Message, ...] | _Reason:
    return _text_problem("text", row["text"]) or (Message(TEXT_ROLE, str(row["text"])),)


def _conversation(row: Mapping[str, object]) -> tuple[Message, ...] | _Reason:
    turns = row["messages"]
    if not isinstance(turns, list) or len(turns) < 2:
        return _Reason("`messages` must be a list of at least two messages")
    messages = []
    for index, turn in enumerate(turns):
        at = f"messages[{index}]"
        if not isinstance(turn, dict):
            return _Reason(f"`{at}` is a {type(turn).__name__}, not an object with `role` and `content`")
        if turn.get("role") not in ROLES:
            return _Reason(f"`{at}.role` is {turn.get('role')!r}, not one of {', '.join(ROLES)}")
        if problem := _text_problem(f"{at}.content", turn.get("content")):
            return problem
        messages.append(Message(str(turn["role"]), str(turn["content"])))
    if messages[-1].role != "assistant":
        return _Reason(f"the last message is the {messages[-1].role}'s, not the assistant's")
    return tuple(messages)


def _text_problem(field: str, value: object) -> _Reason | None:
    if value is None:
        return _Reason(f"`{field}` is missing")
    if not isinstance(value, str):
        return _Reason(f"`{field}` is a {type(value).__name__}, not a string")
    if not value.strip():
        return _Reason(f"`{field}` is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        return _Reason(f"`{field}` holds half of a surrogate pair, which UTF-8 cannot write")
    return None


def _canonical(messages: Iterable[Message]) -> str:
    turns = [[message.role, message.content] for message in messages]
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def _set_aside(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    places = [_place(example.prompt) for example in examples]
    distinct = sorted(set(places))
    if share == 0 or len(distinct) < 2:
        return list(examples), []
    limit = min(max(share, distinct[0]), distinct[-2])  # at least one prompt on either side
    placed = list(zip(examples, places, strict=True))
    train = [example for example, place in placed if place > limit]
    return train, [example for example, place in placed if place <= limit]


def _place(prompt: str) -> float:
    """A prompt's fixed place in (0, 1]."""
    return (int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") + 1) / 2**64


def _refuse_empty(field: str, value: str, read: ReadResult) -> None:
    if not read.examples:
        raise UserError(
            f"{field}: {value}: holds no usable row ({read.rows_read} read): give a file with rows"
        )


def _too_many(bad: list[BadRow], allowed: int) -> str:
    lines = [f"data: {len(bad)} bad rows, {allowed} allowed: mend them or raise data.max_bad_rows"]
    lines += [f"  {row}" for row in bad[:SHOWN_BAD_ROWS]]
    if len(bad) > SHOWN_BAD_ROWS:
        lines.append(f"  and {len(bad) - SHOWN_BAD_ROWS} more")
    return "\n".join(lines)
