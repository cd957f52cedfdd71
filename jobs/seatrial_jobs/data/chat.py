"""Conversations as token ids, with the loss on the response alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seatrial_jobs.data.read import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token without a loss, as torch's cross-entropy has it."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""Turns as `<|role|>content` and the end token: four tokens beside the words of a pair."""


@dataclass(frozen=True)
class Encoded:
    """One document. ``labels[t]`` is ``input_ids[t]`` where there is a loss and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]
    cut_tokens: int = 0
    """Tokens that did not fit and were left out."""


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Encoded:
    """Token ids and labels of at most ``max_tokens`` tokens.

    The loss is on the last message and its end token, or on all of a plain text. What is too long loses the
    beginning of the prompt, and then the end of the response.
    """
    if example.is_text:
        ids = [*_ids(tokenizer, example.response), _end_id(tokenizer)]
        kept = ids[:max_tokens]
        return Encoded(kept, list(kept), len(ids) - len(kept))
    prompt = prompt_ids(example, tokenizer)
    response = _response_ids(example, tokenizer)
    kept_response = response[:max_tokens]
    room = max_tokens - len(kept_response)
    kept_prompt = prompt[max(len(prompt) - room, 0) :]
    cut = len(prompt) + len(response) - len(kept_prompt) - len(kept_response)
    return Encoded(kept_prompt + kept_response, [IGNORED] * len(kept_prompt) + kept_response, cut)


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids up to where the model answers, as a chat server sends them to it."""
    return _ids(tokenizer, _render(tokenizer, example.messages[:-1], prompt=True))


def _response_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What follows the prompt, up to and with the end token."""
    before = _render(tokenizer, example.messages[:-1], prompt=True)
    whole = _render(tokenizer, example.messages, prompt=False)
    # Some templates write an answered turn differently from an open one (hidden reasoning, for example).
    after = whole.removeprefix(before) if whole.startswith(before) else example.response
    ids = _ids(tokenizer, after)
    end = _end_id(tokenizer)
    if end in ids:
        return ids[: len(ids) - ids[::-1].index(end)]
    return [*ids, end]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    options: dict[str, Any] = {} if tokenizer.chat_template else {"chat_template": CHAT_TEMPLATE}
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **options))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token)")
    return int(tokenizer.eos_token_id)
