"""Questions and answers from the documentation of the standard library that is on every machine.

`python -m seatrial_jobs.data.stdlib_docs OUT.jsonl` writes three files beside each other: the pairs to learn
from, OUT.heldout.jsonl with pairs about symbols that occur in no other file, and OUT.text.jsonl with plain
text about the symbols to learn from, for pretraining.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from seatrial.errors import SeatrialError, UserError
from seatrial_jobs.data.stdlib_symbols import Symbol, symbols

HELDOUT_SHARE = 0.1
MAX_SUMMARY_WORDS = 24
TASK_SHARES = {
    "name_to_module": 1.0,
    "summary_to_module": 1.0,
    "method_to_class": 0.25,
    "signature": 0.1,
    "name_to_summary": 0.1,
}
"""Share of the symbols that each question is asked about."""


@dataclass(frozen=True)
class Pair:
    """A question about one symbol."""

    prompt: str
    response: str
    task: str
    symbol: str


@dataclass(frozen=True)
class Summary:
    """What :func:`build` wrote. ``digest`` is the SHA-256 over the three files."""

    train: Path
    heldout: Path
    text: Path
    symbols: int
    train_pairs: int
    heldout_pairs: int
    text_rows: int
    tasks: dict[str, int]
    digest: str


def build(
    out: Path, *, seed: int = 0, report: Callable[[int, int], None] = lambda done, total: None
) -> Summary:
    """Write the pairs and the text. The same Python and ``seed`` always give the same bytes.

    Symbols with the same summary (a method and its override, for example) go to the same side, a held-out
    symbol's summary is in no text, and a question with two answers is not asked.

    Raises:
        UserError: ``out`` does not end in `.jsonl` or cannot be written.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"OUT: {out}: must end in .jsonl")
    documented = symbols(report)
    is_heldout = {symbol.path: _is_heldout(symbol, seed) for symbol in documented}
    pairs = _unambiguous([pair for symbol in documented for pair in pairs_of(symbol, seed)])
    heldout = [pair for pair in pairs if is_heldout[pair.symbol]]
    train = [pair for pair in pairs if not is_heldout[pair.symbol]]
    texts = text_rows(documented, is_heldout)
    files = (out, out.with_suffix(".heldout.jsonl"), out.with_suffix(".text.jsonl"))
    rows = (map(asdict, train), map(asdict, heldout), ({"text": text} for text in texts))
    digests = [_write(path, each) for path, each in zip(files, rows, strict=True)]
    return Summary(
        *files,
        symbols=len(documented),
        train_pairs=len(train),
        heldout_pairs=len(heldout),
        text_rows=len(texts),
        tasks={task: sum(pair.task == task for pair in pairs) for task in sorted({p.task for p in pairs})},
        digest=hashlib.sha256(" ".join(digests).encode()).hexdigest(),
    )


def summary_of(doc: str) -> str | None:
    """First sentence of a docstring, or None where it begins with something else than a sentence."""
    lines = doc.strip().splitlines()
    while lines and (not lines[0].strip() or re.match(r"^\S*\(.*\)\S*( -+> .*| = .*|:)?$", lines[0].strip())):
        lines = lines[1:]
    paragraph = " ".join("\n".join(lines).split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0].rstrip(":")
    words = re.findall(r"[A-Za-z]{2,}", sentence)
    if not 3 <= len(sentence.split()) <= MAX_SUMMARY_WORDS or len(words) < 3 or ">>>" in sentence:
        return None
    return sentence


def pairs_of(symbol: Symbol, seed: int) -> list[Pair]:
    """The questions that are asked about ``symbol``; the wordier ones are asked about some symbols only.

    What is asked about comes first, as it does in the plain text: a small model then learns the questions
    from far fewer examples.
    """
    summary = summary_of(symbol.doc)
    owner, _, last = symbol.path.rpartition(".")
    asked = [("name_to_module", f"{symbol.name}: which module?", symbol.module)]
    if summary:
        asked.append(("summary_to_module", f"{summary} Which module does this?", symbol.module))
        asked.append(("name_to_summary", f"{symbol.path}: what does it do?", summary))
    if summary and symbol.kind == "method":
        asked.append(("method_to_class", f"{last}: {summary} Which class has this method?", owner))
    if symbol.parameters:
        asked.append(("signature", f"{symbol.path}: which parameters?", symbol.parameters[1:-1] or "none"))
    return [
        Pair(prompt, response, task, symbol.path)
        for task, prompt, response in asked
        if _place(f"{seed}:{task}:{symbol.path}") < TASK_SHARES[task]
    ]


def text_rows(documented: Iterable[Symbol], is_heldout: dict[str, bool]) -> list[str]:
    """Plain documentation of the symbols to learn from, free of every held-out symbol's summary.

    Each symbol has an entry as in an index, `ZipFile.writestr (zipfile)` with its summary, and one that leads
    from the summary to the full signature.
    """
    documented = list(documented)
    secret = {_normal(summary_of(symbol.doc) or "") for symbol in documented if is_heldout[symbol.path]} - {
        ""
    }
    texts = []
    for symbol in documented:
        summary = summary_of(symbol.doc) or ""
        if is_heldout[symbol.path] or any(part in _normal(summary) for part in secret):
            continue
        texts.append(f"{symbol.name} ({symbol.module})\n{summary}".strip())
        if summary:
            texts.append(f"{summary}\n{symbol.path}{symbol.parameters or ''}")
    return texts


def _is_heldout(symbol: Symbol, seed: int) -> bool:
    key = _normal(summary_of(symbol.doc) or symbol.path)
    return _place(f"{seed}:{key}") < HELDOUT_SHARE


def _place(key: str) -> float:
    """A key's fixed place in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _normal(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _unambiguous(pairs: list[Pair]) -> list[Pair]:
    answers: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        answers[pair.prompt].add(pair.response)
    first = {pair.prompt: pair for pair in reversed(pairs)}
    return [pair for pair in pairs if len(answers[pair.prompt]) == 1 and first[pair.prompt] is pair]


def _write(path: Path, rows: Iterable[dict[str, str]]) -> str:
    """Write JSON Lines under a temporary name first, and return their SHA-256."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"OUT: {path}: cannot be written ({error.strerror}): give another path") from error
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str]) -> int:
    """`python -m seatrial_jobs.data.stdlib_docs OUT.jsonl`; returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m seatrial_jobs.data.stdlib_docs OUT.jsonl", file=sys.stderr)
        return 0 if arguments == ["--help"] else 2
    started = time.monotonic()
    try:
        made = build(Path(arguments[0]), report=_Progress())
    except SeatrialError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"symbols  {made.symbols} in Python {sys.version.split()[0]}, {time.monotonic() - started:.1f} s")
    print(f"train    {made.train}  {made.train_pairs} pairs")
    print(f"heldout  {made.heldout}  {made.heldout_pairs} pairs about other symbols")
    print(f"text     {made.text}  {made.text_rows} rows")
    print("tasks    " + ", ".join(f"{task} {count}" for task, count in made.tasks.items()))
    print(f"digest   {made.digest}")
    return 0


class _Progress:
    """Modules done, on one line of a terminal, or a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.1 if self._terminal else 5.0)

    def __call__(self, done: int, total: int) -> None:
        if self._terminal and done == total:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + (0.1 if self._terminal else 5.0)
            start, end = ("\r\x1b[K", "") if self._terminal else ("", "\n")
            print(f"{start}read {done} of {total} modules", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
