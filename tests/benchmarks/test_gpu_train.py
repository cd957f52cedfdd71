"""The benchmarks of training run on a CPU with a tiny model, and their arithmetic is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu.data import rows
from benchmarks.gpu.shapes import SHAPES, attended_tokens, build, flops_per_token, peak_flops

ROOT = Path(__file__).parents[2]


def lines_of(module: str, *given: str) -> dict[str, dict[str, Any]]:
    """The lines that a benchmark prints, by their names."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *given],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    return {line["name"]: line for line in found}


def test_both_loops_train_alike_and_a_cpu_has_no_utilisation():
    # A difference of the two losses ends the benchmark with an error.
    found = lines_of("gpu_train", "--packing", "--recompute", "--accumulate=2", "--steps=2", "--warmup=1")
    speed = found["gpu_train_tokens"]
    assert speed["ours"] > 0
    assert speed["ratio"] == pytest.approx(speed["ours"] / speed["peer"], rel=0.05)
    assert found["gpu_train_case"]["packing"] is True
    assert found["gpu_train_mfu"]["ours"] is None
    assert "no GPU" in found["gpu_train_mfu"]["reason"]
    assert found["gpu_train_peak_memory"]["reason"]


def test_lora_trains_less_and_takes_less_memory():
    found = lines_of("lora_vs_full", "--steps=2", "--warmup=1", "--rounds=1", "--seq-tokens=64")
    assert found["lora_vs_full_trained"]["ratio"] < 0.1
    assert 0.05 < found["lora_vs_full_memory"]["ratio"] < 1
    assert found["lora_vs_full_step"]["ours"] > 0


def test_the_number_of_weights_is_the_models_own():
    model = build(SHAPES["tiny"], seq_tokens=64, attention="sdpa", device="cpu")
    assert SHAPES["tiny"].parameters == sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        large = build(SHAPES["1b"], seq_tokens=64, attention="sdpa", device="meta")
    assert SHAPES["1b"].parameters == sum(p.numel() for p in large.parameters()) == 1_235_814_400


def test_the_arithmetic_of_a_token_is_that_of_its_products():
    from torch.utils.flop_counter import FlopCounterMode

    shape, length = SHAPES["tiny"], 64
    model = build(shape, seq_tokens=length, attention="eager", device="cpu")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
    # 6N counts the vectors of the norms as well, and the first layer's input has no gradient to compute.
    assert flops_per_token(shape, length) == pytest.approx(counter.get_total_flops() / length, rel=0.03)


def test_documents_attend_to_themselves_only():
    packed, lengths = rows(400, 64, 20, packing=True)
    assert packed.rows >= 20
    assert attended_tokens([64, 64]) == 64
    assert attended_tokens([32, 16]) == pytest.approx((32 * 32 + 16 * 16) / 48)
    assert attended_tokens(lengths) < 32
    whole, lengths = rows(400, 64, 5, packing=False)
    assert whole.rows == 5
    assert not (whole.position_ids[:, 1:] == 0).any()
    assert np.mean(lengths) == 64


@pytest.mark.parametrize(
    ("card", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
    ],
)
def test_a_card_is_known_by_the_name_that_cuda_gives_it(card: str, tflops: float):
    assert peak_flops(card) == pytest.approx(tflops * 1e12)


def test_a_card_that_is_not_in_the_table_has_no_peak():
    assert peak_flops("NVIDIA GeForce GTX 1080") is None
