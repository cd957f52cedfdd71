"""What the held-out split says: loss, answers, scores, and whether they pass the gate."""

from __future__ import annotations

import math
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seatrial.config.run import GateSection

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from seatrial_jobs.batches import Share
    from seatrial_jobs.data.pack import Packed

GENERATE_ROWS = 32
"""Prompts that are answered together."""
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic repetition mark, closing mark, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # CJK ideographs, extension A
    (0x4E00, 0x9FFF),  # CJK ideographs
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0x20000, 0x3FFFF),  # CJK ideographs, further extensions
)
"""Scripts that put no space between words: each character is a word to ROUGE."""


@dataclass(frozen=True)
class Question:
    """A held-out prompt to be answered."""

    prompt: str
    prompt_ids: list[int]
    reference: str
    lead_in: str = ""
    """What the chat template has taught the model to say first, which is no part of the answer."""


@dataclass(frozen=True)
class Scores:
    """The measurements of one model; ``None`` where there was nothing to measure."""

    loss: float | None
    exact_match: float | None
    rouge_l: float | None


def heldout_loss(
    model: nn.Module,
    packed: Packed,
    rows_at_once: int,
    share: Share,
    autocast: Any,
    *,
    apart: bool = False,
    chunk_tokens: int | None = None,
) -> float:
    """Mean loss in nats per token with a label, over all workers' parts.

    ``apart`` as `Batches` has it. ``chunk_tokens`` as :func:`~seatrial_jobs.loop.token_loss` has it, so that
    measuring takes no more memory than training.
    """
    import torch
    import torch.distributed as dist

    from seatrial_jobs.batches import every
    from seatrial_jobs.data.chat import IGNORED
    from seatrial_jobs.loop import token_loss
    from seatrial_jobs.sharding import looking

    total = torch.zeros(2, dtype=torch.float64, device=share.device)  # (2,) loss sum, tokens
    with looking(model):
        for batch in every(packed, rows_at_once, share, apart=apart):
            with autocast():
                total[0] += token_loss(model, batch, chunk_tokens)
            total[1] += (batch.targets != IGNORED).sum()
    if share.size > 1:
        dist.all_reduce(total)
    return float(total[0] / total[1]) if total[1] else math.nan


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_new_tokens: int,
    device: torch.device,
) -> list[str]:
    """Greedy answers, many at once; prompts are padded on the left so that all end at the same place.

    Of a model that is divided all workers answer as many, word by word together, each with what it holds:
    measuring never takes more memory than training did.
    """
    answers = [""] * len(questions)
    # Equal lengths together: less padding.
    by_length = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt_ids))
    for start in range(0, len(by_length), GENERATE_ROWS):
        chosen = by_length[start : start + GENERATE_ROWS]
        prompts = [questions[i].prompt_ids for i in chosen]
        for i, text in zip(chosen, _generate(model, tokenizer, prompts, max_new_tokens, device), strict=True):
            answers[i] = without_lead_in(text, questions[i].lead_in)
    return answers


def without_lead_in(text: str, lead_in: str) -> str:
    """The answer itself."""
    stripped = text.lstrip()
    return stripped.removeprefix(lead_in).lstrip() if lead_in and stripped.startswith(lead_in) else text


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    device: torch.device,
) -> list[str]:
    import torch

    from seatrial_jobs.sharding import is_sharded, looking

    room = _longest(model) - max_new_tokens
    prompts = [prompt[-room:] for prompt in prompts] if room > 0 else prompts
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((len(prompts), width), pad, device=device)  # (b, P)
    seen = torch.zeros_like(ids)  # (b, P)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        seen[row, width - len(prompt) :] = 1
    with looking(model):
        whole = model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=_ends(model, tokenizer),
            pad_token_id=pad,
            synced_gpus=is_sharded(model),
        )  # (b, P + new)
    return [str(text) for text in tokenizer.batch_decode(whole[:, width:], skip_special_tokens=True)]


def _longest(model: Any) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token at which an answer ends."""
    own = model.generation_config.eos_token_id
    found = own if isinstance(own, list) else [own]
    return sorted({int(token) for token in [*found, tokenizer.eos_token_id] if token is not None})


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    kept = (character for character in text.lower() if not _is_punctuation(character))
    return " ".join("".join(kept).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def same(given: str, wanted: str) -> bool:
    """Whether two texts are equal after :func:`normalise`, or as they are where it leaves nothing of one."""
    left, right = normalise(given), normalise(wanted)
    return left == right if left and right else given.strip() == wanted.strip()


class Words:
    """The tokenizer of `rouge_score` (lower case, words of four letters or more stemmed), for all scripts."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """Runs of letters, marks and digits; single characters of scripts without spaces."""
        spaced = "".join(map(self._spaced, unicodedata.normalize("NFKC", text).lower()))
        return [self._stem(w) if len(w) > 3 and w.isascii() else w for w in spaced.split()]

    @staticmethod
    def _spaced(character: str) -> str:
        if unicodedata.category(character)[0] not in "LMN":
            return " "
        if any(first <= ord(character) <= last for first, last in UNSPACED):
            return f" {character} "
        return character


def score(answers: Sequence[str], references: Sequence[str]) -> tuple[float | None, float | None]:
    """Exact match by :func:`same`, and ROUGE-L F1 over :class:`Words` (Lin 2004), both means in [0, 1]."""
    if not answers:
        return None, None
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=Words())

    def rouge_l(given: str, wanted: str) -> float:
        # Without a word (a formula, an emoji) there is nothing to compare but the whole.
        wordless = not normalise(given) and not normalise(wanted) and same(given, wanted)
        return 1.0 if wordless else float(scorer.score(wanted, given)["rougeL"].fmeasure)

    pairs = list(zip(answers, references, strict=True))
    exact = sum(same(given, wanted) for given, wanted in pairs)
    return exact / len(pairs), sum(rouge_l(given, wanted) for given, wanted in pairs) / len(pairs)


def failed_gates(gate: GateSection, scores: Scores) -> list[str]:
    """Why the scores do not pass; empty when they do. A number that is missing or not finite never passes."""
    wanted = (
        ("loss", scores.loss, gate.max_loss, "gate.max_loss", True),
        ("exact match", scores.exact_match, gate.min_exact_match, "gate.min_exact_match", False),
        ("ROUGE-L", scores.rouge_l, gate.min_rouge_l, "gate.min_rouge_l", False),
    )
    reasons = []
    for name, found, limit, field, lower_is_better in wanted:
        if found is not None and not math.isfinite(found):
            reasons.append(f"{name} is {found}, which is no measurement")
        elif limit is None:
            continue
        elif found is None:
            reasons.append(f"{name} was not measured, {field} wants {limit:g}")
        elif (found > limit) if lower_is_better else (found < limit):
            side = "above" if lower_is_better else "below"
            reasons.append(f"{name} {found:.4g} is {side} {field} {limit:g}")
    return reasons
