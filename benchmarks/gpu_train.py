"""Tokens a second and model-FLOPs utilisation of our loop on one GPU, beside the Trainer of `transformers`.

Both train the same random weights on the same rows in one process, one after the other, without Ray; memory
is freed and its peak started anew between them. The first steps, compilation with them, are left out and
reported on a line of their own. On a CPU a tiny model shows that it runs, and there is no utilisation.

Prints one JSON line for each figure.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from benchmarks.gpu.data import rows
from benchmarks.gpu.shapes import SHAPES, Shape, attended_tokens, flops_per_token, peak_flops
from benchmarks.gpu.sides import Case, Side, ours, trainer

TRAINER_TARGET = 1.2
MFU_TARGET = 0.4
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Largest difference of the mean losses, relative; beyond it the two do not do the same."""
KERNELS = {
    "sdpa": "sdpa",
    "flash": "flash_attention_2",
    "flex": "flex_attention",
    "eager": "eager",
}
ON_GPU = {"size": "1b", "seq_tokens": 4096, "batch_rows": 4, "loss_chunk_tokens": 2048, "steps": 30}
ON_CPU = {"size": "tiny", "seq_tokens": 64, "batch_rows": 4, "loss_chunk_tokens": 64, "steps": 6}


def arguments(given: list[str] | None, *, on_gpu: bool) -> argparse.Namespace:
    """What was asked for; defaults fit an 80 GB card, or a CPU."""
    fitting: dict[str, Any] = ON_GPU if on_gpu else ON_CPU
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_train", description=__doc__)
    parser.add_argument("--size", choices=SHAPES, help="shape of the model")
    parser.add_argument("--seq-tokens", type=int, help="tokens of a row")
    parser.add_argument("--batch-rows", type=int, help="rows of a step")
    parser.add_argument("--accumulate", type=int, default=1, help="passes of a step")
    parser.add_argument("--packing", action="store_true", help="several documents in a row")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=on_gpu)
    parser.add_argument("--peer-compile", action="store_true", help="compile the Trainer's model as well")
    parser.add_argument("--recompute", action="store_true", help="activations are computed again, both sides")
    parser.add_argument("--attention", choices=KERNELS, default="sdpa")
    parser.add_argument("--precision", choices=LOSS_TOLERANCE, default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--tf32", action="store_true", help="float32 products in TF32, both sides")
    parser.add_argument("--loss-chunk-tokens", type=int, help="tokens of a loss; 0: all of a pass")
    parser.add_argument("--steps", type=int, help="measured steps")
    parser.add_argument("--warmup", type=int, default=10 if on_gpu else 2, help="steps before them")
    parser.add_argument("--peak-tflops", type=float, help="of the card, where the table does not know it")
    parser.set_defaults(**fitting)
    return parser.parse_args(given)


def case_of(asked: argparse.Namespace, device: Any) -> Case:
    """The case, with a schedule that both sides compute alike."""
    from seatrial.config.run import RunSection

    run = RunSection(
        steps=asked.steps + asked.warmup,
        seq_tokens=asked.seq_tokens,
        batch_rows=asked.batch_rows,
        accumulate=asked.accumulate,
        learning_rate=1e-4,
        warmup_share=0,
        precision=asked.precision,
        compile=asked.compile,
        recompute=asked.recompute,
        loss_chunk_tokens=asked.loss_chunk_tokens or None,
    )
    return Case(
        SHAPES[asked.size],
        run,
        KERNELS[asked.attention],
        asked.tf32,
        asked.warmup,
        asked.peer_compile,
        device,
    )


def figures(left: Side, right: Side, tokens: float, flops: float, peak: float | None, why: str) -> list[Any]:
    """The lines: ``tokens`` of the measured steps, ``flops`` a token, ``peak`` of the card or why not."""
    speeds = [tokens / side.seconds for side in (left, right)]
    used = [speed * flops / peak for speed in speeds] if peak else [None, None]
    gib = [None if side.peak_bytes is None else side.peak_bytes / 2**30 for side in (left, right)]
    mfu = line("gpu_train_mfu", *used, "share of peak", MFU_TARGET, 4)
    memory = line("gpu_train_peak_memory", *gib, "GiB", None)
    return [
        line("gpu_train_tokens", *speeds, "tokens/s", TRAINER_TARGET),
        mfu if peak else {**mfu, "reason": why},
        memory if gib[0] else {**memory, "reason": "on a CPU the first side's peak hides the second's"},
        line("gpu_train_step", left.step_ms, right.step_ms, "ms", None),
        line("gpu_train_first_step", left.first_step_s, right.first_step_s, "s", None),
    ]


def line(
    name: str, left: Any, right: Any, unit: str, target: float | None, digits: int = 2
) -> dict[str, Any]:
    """One figure of ours beside the Trainer's; the target of tokens is one of the ratio."""
    known = left is not None and right is not None
    return {
        "name": name,
        "ours": round(left, digits) if known else None,
        "peer": round(right, digits) if known else None,
        "ratio": round(left / right, 4) if known else None,
        "unit": unit,
        "target": target,
        "peer_name": "Hugging Face Trainer",
    }


def peak_of(asked: argparse.Namespace, device: Any) -> tuple[float | None, str]:
    """The card's FLOP/s in the precision asked for, or why they are not known."""
    import torch

    if asked.peak_tflops:
        return asked.peak_tflops * 1e12, ""
    if device.type == "cpu":
        return None, "no GPU: give --peak-tflops to measure against what this CPU can do"
    if asked.precision != "bfloat16":
        return None, "the table is of bfloat16: give --peak-tflops"
    card = torch.cuda.get_device_name(device)
    return peak_flops(card), f"{card}: not in the table: give --peak-tflops"


def main(given: list[str] | None = None) -> None:
    """Run both sides and print their figures."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    import torch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    asked = arguments(given, on_gpu=device.type == "cuda")
    torch.set_float32_matmul_precision("high" if asked.tf32 else "highest")
    case = case_of(asked, device)
    needed = min(case.steps * case.run.batch_rows, 256)
    packed, lengths = rows(case.shape.vocabulary, case.run.seq_tokens, needed, packing=asked.packing)
    left, tokens, apart = ours(case, packed)
    right = trainer(case, packed)
    if abs(left.loss - right.loss) > LOSS_TOLERANCE[asked.precision] * right.loss:
        raise AssertionError(f"the two loops do not do the same: mean losses {left.loss} and {right.loss}")
    print(json.dumps(described(asked, case.shape, device, apart)), flush=True)
    flops = flops_per_token(case.shape, attended_tokens(lengths))
    for figure in figures(left, right, tokens * asked.steps, flops, *peak_of(asked, device)):
        print(json.dumps(figure), flush=True)


def described(asked: argparse.Namespace, shape: Shape, device: Any, apart: bool) -> dict[str, Any]:
    """The line that says what was measured, and on what."""
    import torch

    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    packing = "documents in rows of their own" if apart else asked.packing
    about = {"name": "gpu_train_case", "card": card, "torch": torch.__version__}
    return {**about, "parameters": shape.parameters, **vars(asked), "packing": packing}


if __name__ == "__main__":
    main()
