"""Clients that ask at a steady rate, streamed and not, and check every answer to its last byte."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

from tests.serving.stage import KEY

PROMPT = [{"role": "user", "content": "Where does the ship sail?"}]
TOKENS = 6


@dataclass(frozen=True)
class Answer:
    """One request. ``problem`` is None for a whole answer; times are `time.monotonic()`."""

    began: float
    ended: float
    version: str
    arm: str
    text: str
    is_stream: bool
    problem: str | None
    request_id: str = ""


@dataclass
class Load:
    """What came back so far."""

    answers: list[Answer] = field(default_factory=list)
    began: float = 0.0

    @property
    def problems(self) -> list[str]:
        """What went wrong, with how often."""
        return [
            f"{count} x {what}"
            for what, count in Counter(a.problem for a in self.answers if a.problem).items()
        ]

    @property
    def versions(self) -> Counter[str]:
        """Answers of each version."""
        return Counter(answer.version for answer in self.answers)

    @property
    def rate(self) -> float:
        """Answers a second."""
        ends = [answer.ended for answer in self.answers]
        return len(ends) / (max(ends) - self.began) if ends else 0.0

    def wrong(self, texts: Mapping[str, str]) -> list[Answer]:
        """Answers that are not what the version named in their header says."""
        return [a for a in self.answers if a.problem is None and a.text != texts.get(a.version)]

    def since(self, at: float) -> list[Answer]:
        """Answers to requests that were sent at ``at`` or later."""
        return [answer for answer in list(self.answers) if answer.began >= at]

    def longest_gap_s(self, since: float) -> float:
        """The longest time without a whole answer."""
        ends = sorted(
            [since, *(a.ended for a in list(self.answers) if a.problem is None and a.ended >= since)]
        )
        return max((later - earlier for earlier, later in pairwise(ends)), default=0.0)

    def summary(self) -> dict[str, Any]:
        """Figures for a benchmark's line."""
        latencies = sorted(a.ended - a.began for a in self.answers if a.problem is None)
        p95 = latencies[int(0.95 * len(latencies))] if latencies else None
        return {
            "requests": len(self.answers),
            "streamed": sum(answer.is_stream for answer in self.answers),
            "rps": round(self.rate, 1),
            "failed": sum(answer.problem is not None for answer in self.answers),
            "problems": self.problems[:5],
            "p95_ms": round(1000 * p95, 1) if p95 is not None else None,
        }


@contextmanager
def under_load(url: str, service: str, *, rps: float, clients: int = 12) -> Iterator[Load]:
    """Ask ``service`` ``rps`` times a second, as far as ``clients`` at once can, in a thread of its own."""
    load, stop = Load(began=time.monotonic()), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_run(load, url, service, rps, clients, stop)))
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()


async def _run(load: Load, url: str, service: str, rps: float, clients: int, stop: threading.Event) -> None:
    turns = iter(range(10**9))
    connector = aiohttp.TCPConnector(limit=clients)
    headers = {"Authorization": f"Bearer {KEY}"}
    timeout = aiohttp.ClientTimeout(total=60)

    async def client(session: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            turn = next(turns)
            await asyncio.sleep(load.began + turn / rps - time.monotonic())
            load.answers.append(await ask(session, url, service, f"reader-{turn}", is_stream=turn % 2 == 1))

    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))


async def ask(session: aiohttp.ClientSession, url: str, model: str, user: str, *, is_stream: bool) -> Answer:
    """One request, read to its end."""
    body = {
        "model": model,
        "messages": PROMPT,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": is_stream,
        "user": user,
    }
    began, version, arm, text, request_id, problem = time.monotonic(), "", "", "", "", None
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            version = answer.headers.get("x-seatrial-version", "")
            arm = answer.headers.get("x-seatrial-arm", "")
            request_id = answer.headers.get("x-seatrial-request-id", "")
            content = await answer.read()
        if answer.status != 200:
            problem = f"{answer.status} {content[:120]!r}"
        else:
            text, said, problem = read(content, is_stream=is_stream)
            if problem is None and not said.endswith(f"@{version}"):
                problem = f"the header says {version}, the body {said}"
    except (aiohttp.ClientError, TimeoutError) as error:
        problem = f"{type(error).__name__} {error}"
    return Answer(began, time.monotonic(), version, arm, text, is_stream, problem, request_id)


def read(content: bytes, *, is_stream: bool) -> tuple[str, str, str | None]:
    """Text and `model` of an answer, and what is wrong with it."""
    if not is_stream:
        found = json.loads(content)
        return found["choices"][0]["message"]["content"], found["model"], None
    events = [event.removeprefix("data: ") for event in content.decode().split("\n\n") if event]
    if events[-1:] != ["[DONE]"]:
        return "", "", "a stream was cut"
    chunks = [json.loads(event) for event in events[:-1]]
    if any("error" in chunk for chunk in chunks):
        return "", "", f"a stream ended with {chunks[-1]}"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    is_whole = chunks[-1]["choices"][0]["finish_reason"] == "length"
    return text, chunks[0]["model"], None if is_whole else "a stream has no last token"
