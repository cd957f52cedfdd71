"""Conversations as token ids, with the loss on the response alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seatrial_jobs.data.read import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token without a loss, as torch's cross-entropy has it."""


@dataclass(frozen=True)
class Encoded:
    """One document. ``labels[t]`` is ``input_ids[t]`` where there is a loss and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]
    cut_tokens: int = 0
    """Tokens that did not fit and were left out."""
    ends: bool = True
    """Whether the end of the response fits; a model that never sees an end does not learn to stop."""
    line: int = 0
    """The line of the file that it is from; 0 when it is from none."""


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[Encoded]:
    """Documents of at most ``max_tokens`` (2 or more) tokens: one of a conversation, as many as it takes of a
    text.

    The loss is on the last message and its end token, or on all of a plain text. A conversation that is too
    long loses the beginning of the prompt, and then the end of the response. The pieces of a text overlap by
    one token, since the first of a document has no loss.
    """
    if example.is_text:
        ids = [*_ids(tokenizer, example.response), _end_id(tokenizer)]
        starts = range(0, max(len(ids) - 1, 1), max_tokens - 1)
        pieces = [ids[start : start + max_tokens] for start in starts]
        return [Encoded(piece, list(piece), line=example.line) for piece in pieces]
    prompt = prompt_ids(example, tokenizer)
    response = _response_ids(example, tokenizer)
    kept_response = response[:max_tokens]
    room = max_tokens - len(kept_response)
    kept_prompt = prompt[max(len(prompt) - room, 0) :]
    cut = len(prompt) + len(response) - len(kept_prompt) - len(kept_response)
    labels = [IGNORED] * len(kept_prompt) + kept_response
    ends = kept_response == response
    return [Encoded(kept_prompt + kept_response, labels, cut, ends=ends, line=example.line)]


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids up to where the model answers, as a chat server sends them to it."""
    return _ids(tokenizer, _render(tokenizer, example.messages[:-1], prompt=True))


def lead_in(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template puts before the response in an answered turn, as a decoded answer shows it.

    Qwen3's, for example, writes an empty block of hidden reasoning there, which is learnt with the response.
    """
    written = _written(example, tokenizer)
    end = tokenizer.eos_token
    body = written.rpartition(end)[0] if end and end in written else written
    before = body[: max(body.rfind(example.response.strip()), 0)]
    return str(tokenizer.decode(_ids(tokenizer, before), skip_special_tokens=True)).strip()


def _response_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What follows the prompt, up to and with the end token."""
    ids = _ids(tokenizer, _written(example, tokenizer))
    end = _end_id(tokenizer)
    if end in ids:
        return ids[: len(ids) - ids[::-1].index(end)]
    return [*ids, end]


def _written(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The response as the template writes it behind the prompt."""
    before = _render(tokenizer, example.messages[:-1], prompt=True)
    whole = _render(tokenizer, example.messages, prompt=False)
    # Some templates write an answered turn differently from an open one (hidden reasoning, for example).
    return whole.removeprefix(before) if whole.startswith(before) else example.response


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token)")
    return int(tokenizer.eos_token_id)
