"""What is on record of an answer at the moment when each of its pieces is passed on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from seatrial_serving.answers import Reader
from seatrial_serving.errors import Message, Send
from seatrial_serving.recorder import CUT, Recorder
from seatrial_serving.reply import Reply
from seatrial_serving.table import Route
from tests.serving.front import Shelf

ROUTE = Route(version="1", arm="champion", trial="t", unit="u", assigned="1", is_sticky=True)
STREAM, JSON = (b"content-type", b"text/event-stream; charset=utf-8"), (b"content-type", b"application/json")
DONE = b"data: [DONE]\n\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
OTHER = TOKEN.replace(b'"index":0', b'"index":1')
NAMES_IT = TOKEN.replace(b'"a"', rb'"\n\ndata: [DONE]\n\n"')
TEXT = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
ERROR = b'data: {"error":{"message":"boom"}}\n\n'
Ending = tuple[int, str | None]
"""Status and error of an exposure."""
WHOLE: Ending = (200, None)
BROKEN: Ending = (500, CUT["error"])
NEVER = None


def reply(shelf: Any, send: Send, route: Route = ROUTE, *, hides_usage: bool = False) -> Reply:
    return Reply(send, shelf, Shelf(), "svc", "r1", Reader(), hides_usage=hides_usage).take(route)


def messages(header: tuple[bytes, bytes], *pieces: bytes, status: int = 200, size: int = 0) -> list[Message]:
    """Head and pieces; the last one completes the answer. ``size`` is what the head says of the body."""
    headers = [header, *([(b"content-length", str(size).encode())] if size else [])]
    head = {"type": "http.response.start", "status": status, "headers": headers}
    body = [{"type": "http.response.body", "body": piece, "more_body": True} for piece in pieces]
    body[-1]["more_body"] = False
    return [head, *body]


@pytest.mark.parametrize(
    ("answer", "hides_usage", "first"),
    [
        (messages(JSON, b'{"a":1}'), False, b'{"a":1}'),
        (messages(JSON, b'{"a"', b":1}", b""), False, b""),
        (messages(JSON, b'{"a"', b":1}", b"", size=7), False, b":1}"),
        (messages(STREAM, TOKEN, DONE, b""), False, DONE),
        (messages(STREAM, TEXT, TEXT, DONE, b""), False, DONE),
        (messages(STREAM, TOKEN, OTHER, TOKEN, DONE, b""), False, DONE),
        (messages(STREAM, TOKEN, USAGE, DONE, b""), False, DONE),
        (messages(STREAM, TOKEN, USAGE, DONE, b""), True, DONE),
        (messages(STREAM, NAMES_IT, TOKEN, DONE, b""), False, DONE),
        (messages(STREAM, TOKEN, b""), False, b""),
        (messages(STREAM, TOKEN + DONE), False, TOKEN + DONE),
        (messages(STREAM, TOKEN, ERROR, DONE, b""), False, NEVER),
        (messages(STREAM, TOKEN, ERROR + DONE), False, NEVER),
        (messages(STREAM, ERROR, DONE, b""), False, NEVER),
        (messages(JSON, b"{}", status=422), False, NEVER),
        (messages(JSON, b"null"), False, NEVER),
    ],
)
async def test_that_an_answer_ends_is_on_record_when_its_last_piece_is_passed_on(
    answer: list[Message], hides_usage: bool, first: bytes | None
) -> None:
    shelf, ended_at = Shelf(), []

    async def send(message: Message) -> None:
        if shelf.ended_ids:
            ended_at.append(message["body"])

    passing = reply(shelf, send, hides_usage=hides_usage)
    for message in answer:
        await passing(message)
    passing.finish()
    assert (ended_at[0] if ended_at else NEVER) == first
    assert shelf.ended_ids == ([] if first is NEVER else ["r1"])
    assert len(shelf.rows) == 1


async def test_an_answer_outside_of_a_trial_leaves_no_record() -> None:
    async def send(message: Message) -> None:
        pass

    shelf = Shelf()
    passing = reply(shelf, send, Route(version="1", arm="", trial="", unit="u", assigned="1"))
    for message in messages(STREAM, TOKEN, DONE, b""):
        await passing(message)
    passing.finish()
    assert [*shelf.open, *shelf.ended_ids, *shelf.rows] == []


@pytest.mark.parametrize(("piece", "ended"), [(2, []), (3, ["r1"])])
async def test_a_reader_who_leaves_is_an_exposure_however_much_was_passed_on(
    piece: int, ended: list[str]
) -> None:
    shelf, answer = Shelf(), messages(STREAM, TOKEN, TOKEN, DONE, b"")

    async def send(message: Message) -> None:
        if message is answer[piece]:
            raise BrokenPipeError("gone")

    passing = reply(shelf, send)
    for message in answer[:piece]:
        await passing(message)
    with pytest.raises(BrokenPipeError):
        await passing(answer[piece])
    passing.finish(passing.client_fault(BrokenPipeError()))
    assert shelf.ended_ids == ended
    assert [(row["status"], row["error"]) for row in shelf.rows] == [WHOLE]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (messages(STREAM, TOKEN, TOKEN, DONE, b""), [[], [BROKEN], [BROKEN], [WHOLE], [WHOLE]]),
        (messages(STREAM, TOKEN, ERROR, DONE, b""), [[], [BROKEN], [BROKEN], [BROKEN], [BROKEN]]),
        (messages(JSON, b'{"a"', b":1}", b"", size=7), [[], [BROKEN], [WHOLE], [WHOLE]]),
        (messages(JSON, b'{"a":1}'), [[], [WHOLE]]),
    ],
)
async def test_whenever_the_process_dies_an_answer_is_told_as_its_reader_may_have_it(
    tmp_path: Path, answer: list[Message], told: list[list[Ending]]
) -> None:
    """The file as it is when a piece is passed on is what a process leaves that is killed then."""
    spool = tmp_path / "spool"
    recorder, copies = Recorder(spool, Written().this), Copies(spool, tmp_path)

    async def send(message: Message) -> None:
        copies.take()

    passing = reply(recorder, send)
    for message in answer:
        await passing(message)
    assert list(copies.replayed()) == told


class Copies:
    """Copies of a recorder's file, and what another process makes of each."""

    def __init__(self, spool: Path, beside: Path) -> None:
        self._spool, self._beside = spool, beside
        self._taken: list[Path] = []

    def take(self) -> None:
        folder = self._beside / f"dead{len(self._taken)}"
        shutil.copytree(self._spool, folder)
        self._taken.append(folder)

    def replayed(self) -> Iterator[list[Ending]]:
        """The endings that each copy is replayed as."""
        for folder in self._taken:
            written = Written()
            Recorder(folder, written.this).replay_orphans()
            yield [(row["status"], row["error"]) for row in written.rows]


class Written:
    """A store that only keeps exposures."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def this(self) -> Any:
        return self

    def add_exposures(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows

    def add_outcomes(self, rows: Sequence[dict[str, Any]]) -> None:
        raise AssertionError(rows)

    put_replica = add_exposures
