"""Scores, gates, and answers that do not depend on what they are batched with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from seatrial.config.run import GateSection
from seatrial_jobs.evaluate import Question, Scores, Words, answer, failed_gates, normalise, score
from seatrial_jobs.prepare import load_tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [("  The `os.path`  module. ", "the ospath module"), ("a\nb", "a b"), ("!?", ""), ("“好”。", "好")],
)
def test_normalising_drops_case_punctuation_and_space(text: str, expected: str):
    assert normalise(text) == expected


def test_scores_of_known_answers():
    exact, rouge = score(["The cats sat.", "nothing"], ["the cat sat", "something else"])
    assert exact == 0.0
    assert rouge == pytest.approx(0.5)  # stemmed: 1.0 and 0.0
    assert score(["A."], ["a"]) == (1.0, 1.0)
    assert score([], []) == (None, None)


def test_chinese_is_scored_by_characters():
    assert score(["今天天气很好"], ["今天天气不好。"]) == (0.0, pytest.approx(2 * 5 / 12))
    assert score(["今天 天气很好！"], ["今天天气很好。"])[1] == 1.0
    assert score(["Das Wetter über München"], ["das wetter über münchen"]) == (1.0, 1.0)
    assert score(["मौसम अच्छा है"], ["मौसम बुरा है"])[1] == pytest.approx(2 / 3)


def test_english_is_cut_as_rouge_score_cuts_it():
    from rouge_score.tokenizers import DefaultTokenizer

    text = "The re-tried `os.path_join`s were RUNNING, 3x faster (don't ask)."
    assert Words().tokenize(text) == DefaultTokenizer(True).tokenize(text)


def test_texts_of_which_normalising_leaves_nothing_are_compared_as_they_are():
    assert score(["!"], ["?"]) == (0.0, 0.0)
    assert score([" + "], ["+"]) == (1.0, 1.0)
    assert score([""], ["..."]) == (0.0, 0.0)
    assert score(["a"], ["?"]) == (0.0, 0.0)


def test_a_gate_passes_only_on_finite_numbers_that_are_good_enough():
    gate = GateSection(max_loss=2.0, min_exact_match=0.5, min_rouge_l=0.5)
    assert failed_gates(gate, Scores(2.0, 0.5, 0.5)) == []
    reasons = failed_gates(gate, Scores(2.5, 0.4, None))
    assert reasons == [
        "loss 2.5 is above gate.max_loss 2",
        "exact match 0.4 is below gate.min_exact_match 0.5",
        "ROUGE-L was not measured, gate.min_rouge_l wants 0.5",
    ]
    assert failed_gates(GateSection(), Scores(math.nan, None, None)) == [
        "loss is nan, which is no measurement"
    ]
    assert failed_gates(GateSection(), Scores(None, None, None)) == []


def test_answers_are_the_same_alone_and_in_a_padded_batch(tiny_base: Path):
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    tokenizer = load_tokenizer(tiny_base)
    texts = ["alpha", "alpha beta gamma delta epsilon", "kappa mu zeta"]
    asked = [Question(t, tokenizer.encode(t, add_special_tokens=False), "") for t in texts]
    cpu = torch.device("cpu")
    together = answer(model, tokenizer, asked, 12, cpu)
    assert together == [answer(model, tokenizer, [one], 12, cpu)[0] for one in asked]
    assert all(together)


class Reasoner(torch.nn.Module):
    """Stands for a trained model: answers every prompt with the same tokens."""

    def __init__(self, model: Any, says: list[int]) -> None:
        super().__init__()
        self.config, self.generation_config, self.says = model.config, model.generation_config, says

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        said = torch.tensor(self.says).expand(len(input_ids), -1)
        return torch.cat([input_ids, said], 1)


def test_what_the_template_taught_to_say_first_is_no_part_of_the_answer(tiny_base: Path):
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    tokenizer = load_tokenizer(tiny_base)

    def answered(text: str, lead_in: str) -> str:
        asked = [Question("q", [7, 8, 9], "alpha beta", lead_in)]
        trained = Reasoner(model, tokenizer.encode(text, add_special_tokens=False))
        return answer(trained, tokenizer, asked, 12, torch.device("cpu"))[0]

    block = "<think>\n\n</think>"
    assert answered(f"{block}\n\nalpha beta<|end|>", block) == "alpha beta"
    assert answered("alpha beta<|end|>", block) == "alpha beta"
    assert answered("<think>\nfirst", block) == "<think>\nfirst"
    assert answered(" alpha", "") == " alpha"
