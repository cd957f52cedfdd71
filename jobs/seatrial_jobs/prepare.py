"""Everything a job needs before workers start: data read and packed, the base found, the length known."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seatrial.config.recipe import PretrainRecipe, Recipe, TrainRecipe
from seatrial.errors import UserError
from seatrial.registry.bases import CHAT_TEMPLATE
from seatrial_jobs.data.chat import Encoded, encode, lead_in, prompt_ids
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.data.read import Example, Split, leave_out, load_split
from seatrial_jobs.evaluate import Question
from seatrial_jobs.export import base as bases

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIZES = (
    "max_position_embeddings",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
)
"""What is read of a base's configuration; model families have other names for some of it."""


@dataclass(frozen=True)
class Cut:
    """What of the conversations did not fit rows of `run.seq_tokens`; texts are split and lose nothing."""

    documents: int = 0
    tokens: int = 0
    responses: int = 0
    """Documents that lost the end of their response, and its end token with it."""

    @classmethod
    def of(cls, documents: Sequence[Encoded]) -> Cut:
        """Count over documents."""
        return cls(
            documents=sum(document.cut_tokens > 0 for document in documents),
            tokens=sum(document.cut_tokens for document in documents),
            responses=sum(not document.ends for document in documents),
        )


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to start."""

    split: Split
    train: Packed
    heldout: Packed | None
    questions: list[Question]
    """Held-out prompts to answer at the end."""
    steps: int
    base: bases.LocalBase | None
    """Where fine-tuning starts; ``None`` when a model is made from nothing."""
    tokenizer_files: dict[str, str] | None
    """Name → content of a tokenizer that was made for this job."""
    cut: Cut
    """What is lost of the training and held-out rows."""

    @property
    def tokens_digest(self) -> str:
        """SHA-256 of the packed training rows: tokenizer, chat template and packing show in it as well."""
        return self.train.digest

    @property
    def base_digest(self) -> str:
        """Digest of what the weights start from."""
        return self.base.digest if self.base else "nothing"


def prepare(recipe: TrainRecipe | PretrainRecipe, root: Path) -> Prepared:
    """Read, tokenize and pack a recipe's data; relative paths start at ``root``.

    Raises:
        UserError: data or base are missing, empty or do not fit together.
    """
    split = load_split(recipe.data, root)
    base, files, tokenizer, shape = _start(recipe, split, root)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{shape.field}: its tokenizer has no end token (eos_token): add one to the base")
    if recipe.run.seq_tokens > shape.positions:
        raise UserError(
            f"run.seq_tokens: {recipe.run.seq_tokens}: longer than the model's {shape.positions} positions: "
            "lower it"
        )
    learnt, wrong = _encoded(split.train, tokenizer, recipe.run.seq_tokens)
    measured, also_wrong = _encoded(split.heldout, tokenizer, recipe.run.seq_tokens)
    split = leave_out(split, recipe.data, wrong + also_wrong)
    train = pack(learnt, recipe.run.seq_tokens)
    if not train.label_tokens:
        raise UserError(
            f"data.train: {recipe.data.train}: no token to learn fits a row: raise run.seq_tokens"
        )
    heldout = pack(measured, recipe.run.seq_tokens) if measured else None
    largest = int(max(part.input_ids.max() for part in (train, heldout) if part is not None))
    if largest >= shape.vocabulary:
        raise UserError(
            f"{shape.field}: its tokenizer makes token {largest} of {shape.vocabulary}: mend the base"
        )
    return Prepared(
        split=split,
        train=train,
        heldout=heldout,
        questions=_questions(recipe, split.heldout, tokenizer),
        steps=steps_of(recipe, train),
        base=base,
        tokenizer_files=files,
        cut=Cut.of(learnt + measured),
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, with the default chat template when it has none.

    The plain fast class where it will do, since it imports no torch.
    """
    found: PreTrainedTokenizerBase
    if (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        found = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not found.chat_template:
        found.chat_template = CHAT_TEMPLATE  # so that a version which is a whole model carries it
    return found


def write_files(files: dict[str, str], folder: Path) -> None:
    """Put text files into ``folder``."""
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


@dataclass(frozen=True)
class _Shape:
    """The limits that a model sets to its data. ``field`` is the part of the recipe that names the model."""

    field: str
    positions: int
    vocabulary: int


def _start(
    recipe: TrainRecipe | PretrainRecipe, split: Split, root: Path
) -> tuple[bases.LocalBase | None, dict[str, str] | None, PreTrainedTokenizerBase, _Shape]:
    if isinstance(recipe, TrainRecipe):
        base = bases.resolve(recipe.model.base, recipe.model.revision, root=root)
        try:
            tokenizer = load_tokenizer(base.path)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.base: {recipe.model.base}: its tokenizer cannot be read ({reason}): mend the base"
            ) from error
        return base, None, tokenizer, _shape_of(base, recipe.model.base)
    from seatrial_jobs.tokenizer import train_tokenizer

    made = train_tokenizer(_texts(split.train), recipe.tokenizer.vocab_size)
    shape = _Shape("tokenizer", recipe.architecture.max_positions, recipe.tokenizer.vocab_size)
    return None, _files_of(made), made, shape


def _shape_of(base: bases.LocalBase, ref: str) -> _Shape:
    unbounded = 1 << 30
    try:
        config = read_config(base.path)
        positions = int(config.get("max_position_embeddings") or unbounded)
        vocabulary = int(config.get("vocab_size") or unbounded)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base: {ref}: its config.json cannot be read ({reason}): mend the base"
        ) from error
    return _Shape("model.base", positions, vocabulary)


def read_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of the language model in ``folder``, under the names of :data:`SIZES`.

    Raises:
        ValueError: `transformers` cannot read it.
    """
    written: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    plain = written.get("text_config") or written
    if all(name in plain for name in SIZES):
        return plain
    # Other names (GPT-2's `n_positions`) and defaults that are not written down; this imports torch.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (KeyError, OSError, AttributeError, StrictDataclassError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return {**config.to_dict(), **{name: getattr(config, name, None) for name in SIZES}}


def _texts(examples: Sequence[Example]) -> list[str]:
    return [message.content for example in examples for message in example.messages]


def _files_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place, save_jinja_files=False)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(place).iterdir())}


def _encoded(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, seq_tokens: int
) -> tuple[list[Encoded], list[tuple[Example, str]]]:
    """The documents of all examples, and the examples that the chat template refuses, with the reason."""
    from jinja2 import TemplateError

    documents: list[Encoded] = []
    refused: list[tuple[Example, str]] = []
    for example in examples:
        try:
            documents += encode(example, tokenizer, seq_tokens)
        except TemplateError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            refused.append((example, f"is refused by the model's chat template ({reason})"))
    return documents, refused


def _questions(
    recipe: Recipe, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[Question]:
    """A fixed sample of the held-out prompts: the same for every job on the same data."""
    asked = [example for example in examples if not example.is_text]
    chosen = np.random.default_rng(0).permutation(len(asked))[: recipe.gate.sample_rows]
    return [
        Question(
            prompt=_last_user_turn(asked[i]),
            prompt_ids=prompt_ids(asked[i], tokenizer),
            reference=asked[i].response,
            lead_in=lead_in(asked[i], tokenizer),
        )
        for i in sorted(int(index) for index in chosen)
    ]


def _last_user_turn(example: Example) -> str:
    turns = [message.content for message in example.messages[:-1] if message.role == "user"]
    return turns[-1] if turns else example.prompt


def steps_of(recipe: Recipe, train: Packed) -> int:
    """Optimizer steps of a recipe on its packed rows."""
    if recipe.run.steps is not None:
        return recipe.run.steps
    return max(math.ceil((recipe.run.epochs or 0) * train.rows / recipe.run.batch_rows), 1)
