"""What came of each request, by arm, for Prometheus. Ray's own agent of the node exports it.

Labels have few values: the service, the arm (an alias, `shadow`, or `none` outside of trials), the version,
the class of the status. People name aliases and versions, and an exporter never forgets a series: a process
names at most MOST_ARMS arms and MOST_VERSIONS versions, and what comes later is `other`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

NO_ARM, SHADOW, OTHER = "none", "shadow", "other"
UNKNOWN = (NO_ARM, OTHER)
# Arms that are named in any case.
ALWAYS = (NO_ARM, SHADOW, OTHER, "champion", "challenger")
MOST_ARMS, MOST_VERSIONS = 16, 64
SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
LABELS = ("service", "arm", "version")


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of one request."""

    arm: str
    version: str
    status: int
    latency_s: float
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    is_fallback: bool = False
    is_refused: bool = False


class Meter(Protocol):
    """Counts, from any thread."""

    def answered(self, sample: Sample) -> None: ...
    def shadowed(self, version: str, result: str) -> None: ...
    def judged(self, arm: str, version: str, count: int) -> None: ...
    def rejected(self, reason: str) -> None: ...


class RayMeter:
    """Counters and histograms of `ray.util.metrics`, whose names begin with `ray_` where they are read."""

    def __init__(self, service: str) -> None:
        from ray.util import metrics

        def counter(name: str, what: str, *more: str) -> Any:
            return metrics.Counter(f"seatrial_{name}", what, (*LABELS, *more))

        def histogram(name: str, what: str) -> Any:
            return metrics.Histogram(f"seatrial_{name}", what, SECONDS, LABELS)

        self._service = service
        self._arms = set(ALWAYS)
        self._versions = {OTHER}
        self._requests = counter("requests", "Requests that were routed", "status")
        self._errors = counter("errors", "Requests that the version failed to answer (5xx, or broken off)")
        self._fallbacks = counter("fallbacks", "Requests that the champion answered in the arm's place")
        self._refusals = counter("refusals", "Answers that refuse")
        self._prompt = counter("prompt_tokens", "Tokens of prompts that were answered")
        self._completion = counter("completion_tokens", "Tokens of answers")
        self._outcomes = counter("outcomes", "Outcomes that came for answers of the arm")
        self._shadows = counter("shadow_answers", "Copies of requests for the shadow", "result")
        self._rejected = metrics.Counter(
            "seatrial_rejected", "Requests that were refused before they were routed", ("service", "reason")
        )
        self._latency = histogram("latency_seconds", "From the request to the end of its answer")
        self._ttft = histogram("time_to_first_token_seconds", "From the request to its first token")

    def answered(self, sample: Sample) -> None:
        """Count one request."""
        tags = self._tags(sample.arm, sample.version)
        self._requests.inc(1, {**tags, "status": f"{sample.status // 100}xx"})
        if sample.status >= 500:
            self._errors.inc(1, tags)
            return
        if sample.status >= 400:
            return
        self._latency.observe(sample.latency_s, tags)
        if sample.ttft_s is not None:
            self._ttft.observe(sample.ttft_s, tags)
        counts = (
            (self._prompt, sample.prompt_tokens),
            (self._completion, sample.completion_tokens),
            (self._fallbacks, sample.is_fallback),
            (self._refusals, sample.is_refused),
        )
        for counter, count in counts:
            if count:
                counter.inc(int(count), tags)

    def shadowed(self, version: str, result: str) -> None:
        """Count a copy: `same` or `different` answers, `failed`, or `dropped` because there was no room."""
        self._shadows.inc(1, {**self._tags(SHADOW, version), "result": result})

    def judged(self, arm: str, version: str, count: int) -> None:
        """Count outcomes."""
        self._outcomes.inc(count, self._tags(arm, version))

    def rejected(self, reason: str) -> None:
        """Count a request that no version has seen; ``reason`` is the code of its error, one of our own."""
        self._rejected.inc(1, {"service": self._service, "reason": reason})

    def _tags(self, arm: str, version: str) -> dict[str, str]:
        return {
            "service": self._service,
            "arm": bounded(arm, self._arms, MOST_ARMS),
            "version": bounded(version, self._versions, MOST_VERSIONS),
        }


class Arms(Protocol):
    """The part of :class:`seatrial.store.Store` that is used."""

    def arms_of(self, request_ids: Sequence[str]) -> dict[str, tuple[str, str]]: ...


def count_outcomes(meter: Meter, store: Arms, rows: Sequence[Mapping[str, Any]]) -> None:
    """Count outcomes for the arms whose answers they speak of, whichever replica gave those.

    Those of no known request, or of a unit, are counted for the arm `none`.
    """
    asked = [row["request_id"] for row in rows if row["request_id"]]
    known = store.arms_of(asked) if asked else {}
    for (arm, version), count in Counter(known.get(row["request_id"], UNKNOWN) for row in rows).items():
        meter.judged(arm, version, count)


def bounded(value: str, known: set[str], most: int) -> str:
    """``value``, or `other` when ``known`` is full without it. Adds to ``known``."""
    if value not in known:
        if len(known) >= most:
            return OTHER
        known.add(value)
    return value
