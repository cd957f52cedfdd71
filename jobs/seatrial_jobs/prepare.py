"""Everything a job needs before workers start: data read and packed, the base found, the length known."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seatrial.config.recipe import PretrainRecipe, Recipe, TrainRecipe
from seatrial.errors import UserError
from seatrial_jobs.data.chat import encode, prompt_ids
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.data.read import Example, Split, load_split
from seatrial_jobs.evaluate import Question
from seatrial_jobs.export import base as bases

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    train = _pack(split.train, tokenizer, recipe.run.seq_tokens)
    if not train.label_tokens:
        raise UserError(
            f"data.train: {recipe.data.train}: no token to learn fits a row: raise run.seq_tokens"
        )
    heldout = _pack(split.heldout, tokenizer, recipe.run.seq_tokens) if split.heldout else None
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
        steps=_steps(recipe, train),
        base=base,
        tokenizer_files=files,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``; the plain fast class where it will do, since it imports no torch."""
    if (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        fast: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        return fast
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
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
        return base, None, tokenizer, _shape_of(base)
    from seatrial_jobs.tokenizer import train_tokenizer

    made = train_tokenizer(_texts(split.train), recipe.tokenizer.vocab_size)
    shape = _Shape("tokenizer", recipe.architecture.max_positions, recipe.tokenizer.vocab_size)
    return None, _files_of(made), made, shape


def _shape_of(base: bases.LocalBase) -> _Shape:
    config: dict[str, Any] = json.loads((base.path / "config.json").read_bytes())
    config = config.get("text_config") or config
    unbounded = 1 << 30
    positions = config.get("max_position_embeddings") or unbounded
    return _Shape("model.base", int(positions), int(config.get("vocab_size") or unbounded))


def _texts(examples: Sequence[Example]) -> list[str]:
    return [message.content for example in examples for message in example.messages]


def _files_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place, save_jinja_files=False)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(place).iterdir())}


def _pack(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, seq_tokens: int) -> Packed:
    return pack([encode(example, tokenizer, seq_tokens) for example in examples], seq_tokens)


def _questions(
    recipe: Recipe, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[Question]:
    """A fixed sample of the held-out prompts: the same for every job on the same data."""
    asked = [example for example in examples if not example.is_text]
    chosen = np.random.default_rng(0).permutation(len(asked))[: recipe.gate.sample_rows]
    return [
        Question(_last_user_turn(asked[i]), prompt_ids(asked[i], tokenizer), asked[i].response)
        for i in sorted(int(index) for index in chosen)
    ]


def _last_user_turn(example: Example) -> str:
    turns = [message.content for message in example.messages[:-1] if message.role == "user"]
    return turns[-1] if turns else example.prompt


def _steps(recipe: Recipe, train: Packed) -> int:
    if recipe.run.steps is not None:
        return recipe.run.steps
    return max(math.ceil((recipe.run.epochs or 0) * train.rows / recipe.run.batch_rows), 1)


def digest_of_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
