"""Scores, gates, and answers that do not depend on what they are batched with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from seatrial.config.run import GateSection
from seatrial_jobs.evaluate import Question, Scores, answer, failed_gates, normalise, score
from seatrial_jobs.prepare import load_tokenizer


@pytest.mark.parametrize(
    ("text", "expected"), [("  The `os.path`  module. ", "the ospath module"), ("a\nb", "a b"), ("!?", "")]
)
def test_normalising_drops_case_punctuation_and_space(text: str, expected: str):
    assert normalise(text) == expected


def test_scores_of_known_answers():
    exact, rouge = score(["The cats sat.", "nothing"], ["the cat sat", "something else"])
    assert exact == 0.0
    assert rouge == pytest.approx(0.5)  # stemmed: 1.0 and 0.0
    assert score(["A."], ["a"]) == (1.0, 1.0)
    assert score([], []) == (None, None)


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
