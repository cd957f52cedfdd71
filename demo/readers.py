"""Simulated readers with real requests: who asks, what comes back, and how content they are.

A reader asks a held-out question through an ordinary `openai` client. Nobody invents the answer: its
quality is the ROUGE-L F1 of what the model really wrote against the reference. Only the reader's reaction
is drawn: content with probability equal to that quality.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from openai import APIError, AsyncOpenAI
from rouge_score.rouge_scorer import RougeScorer

CONCURRENCY = 8
OUTCOME_BATCH = 50


@dataclass(frozen=True)
class Question:
    """A held-out prompt and its reference answer."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class Reply:
    """One answered or failed request."""

    unit: str
    request_id: str
    version: str
    arm: str
    trial: str
    quality: float
    error: str = ""


class Readers:
    """A crowd of distinct users of one service."""

    def __init__(self, base_url: str, service: str, questions: Sequence[Question], seed: int = 0) -> None:
        self._http = httpx.AsyncClient(base_url=base_url, timeout=120)
        self._client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="unused-on-loopback", max_retries=0)
        self._service = service
        self._questions = questions
        self._random = random.Random(seed)  # noqa: S311 - a simulation, no secret
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self.replies: list[Reply] = []
        self.outcomes = 0

    async def close(self) -> None:
        """Close both connection pools."""
        await self._client.close()
        await self._http.aclose()

    async def ask_many(self, units: Sequence[str]) -> list[Reply]:
        """One question from each unit, at most ``CONCURRENCY`` at a time, then their reactions."""
        questions = [self._random.choice(self._questions) for _ in units]
        replies = await asyncio.gather(
            *(
                self.ask(unit, question, stream=number % 2 == 0)
                for number, (unit, question) in enumerate(zip(units, questions, strict=True))
            )
        )
        self.replies += replies
        await self._react([reply for reply in replies if not reply.error and reply.trial])
        return list(replies)

    async def ask(self, unit: str, question: Question, *, stream: bool) -> Reply:
        """One request; an error becomes a failed reply."""
        messages = [{"role": "user", "content": question.prompt}]
        create = self._client.chat.completions.with_raw_response.create
        async with self._slots:
            try:
                raw = await create(
                    model=self._service,
                    messages=messages,
                    user=unit,
                    temperature=0,
                    max_tokens=40,
                    stream=stream,
                )
                text = await _text(raw.parse(), stream)
            except APIError as error:
                return Reply(unit, "", "", "", "", 0.0, error=str(error))
        header = raw.headers.get
        return Reply(
            unit=unit,
            request_id=header("x-seatrial-request-id", ""),
            version=header("x-seatrial-version", ""),
            arm=header("x-seatrial-arm", ""),
            trial=header("x-seatrial-trial", ""),
            quality=self._scorer.score(question.reference, text)["rougeL"].fmeasure,
        )

    async def _react(self, replies: Sequence[Reply]) -> None:
        """Post one reaction for each reply and count those that the service accepted."""
        reactions = [
            {"request_id": reply.request_id, "metric": "resolved", "value": float(self._is_content(reply))}
            for reply in replies
        ]
        for start in range(0, len(reactions), OUTCOME_BATCH):
            batch = reactions[start : start + OUTCOME_BATCH]
            answer = await self._http.post("/v1/outcomes", json={"outcomes": batch})
            answer.raise_for_status()
            self.outcomes += int(answer.json()["accepted"])

    def _is_content(self, reply: Reply) -> bool:
        return self._random.random() < reply.quality


async def _text(answer: object, stream: bool) -> str:
    if not stream:
        return answer.choices[0].message.content or ""  # type: ignore[attr-defined]
    parts = [chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices]  # type: ignore[attr-defined]
    return "".join(parts)
