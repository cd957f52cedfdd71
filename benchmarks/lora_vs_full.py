"""Time of a step and peak memory of LoRA against training every weight: measured, beside the usual claims.

Both train the same model on the same batches with our loop, each in a process of its own, so that a peak is
its own: of the tensors on a GPU, of the whole process on a CPU, less what it held before the model was
built. They take turns for some rounds, and a figure is the median of the rounds' ratios.

Prints one JSON line for each figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import SHAPES

CLAIMS = {
    # Hu et al. 2021, arXiv:2106.09685, of GPT-3 175B with Adam:
    "step": 0.754,  # section 4.2: 43.1 tokens/s instead of 32.5 on each V100
    "memory": 0.333,  # abstract: "GPU memory requirement by 3 times"
    "trained": 0.0001,  # abstract: "trainable parameters by 10,000 times"
}
ON_GPU = {"size": "1b", "seq_tokens": 2048, "batch_rows": 4, "steps": 20, "rounds": 2}
ON_CPU = {"size": "small", "seq_tokens": 128, "batch_rows": 4, "steps": 5, "rounds": 3}


def arguments(given: list[str] | None, *, on_gpu: bool) -> argparse.Namespace:
    """What was asked for; defaults fit an 80 GB card, or a CPU."""
    fitting: dict[str, Any] = ON_GPU if on_gpu else ON_CPU
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_vs_full", description=__doc__)
    parser.add_argument("--size", choices=SHAPES, help="shape of the model")
    parser.add_argument("--seq-tokens", type=int, help="tokens of a row")
    parser.add_argument("--batch-rows", type=int, help="rows of a step")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters, on all linear layers")
    parser.add_argument("--recompute", action="store_true", help="activations are computed again")
    parser.add_argument("--steps", type=int, help="measured steps of a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, help="processes of each method")
    parser.add_argument("--method", choices=("lora", "full"), help="measure this one here and print it")
    parser.set_defaults(**fitting)
    return parser.parse_args(given)


def measure(asked: argparse.Namespace, device: Any) -> dict[str, Any]:
    """One method in this process: milliseconds of its median step, its peak, and what it trains."""
    from benchmarks.gpu.clock import Clock, peak_bytes
    from benchmarks.gpu.data import rows
    from seatrial.config.run import RunSection
    from seatrial_jobs.batches import Batches, Share
    from seatrial_jobs.loop import Schedule, autocast_for, optimizer_for, recompute_layers, train

    shape, steps = SHAPES[asked.size], asked.steps + asked.warmup
    run = RunSection(
        steps=steps, seq_tokens=asked.seq_tokens, batch_rows=asked.batch_rows, learning_rate=1e-4
    )
    packed, _ = rows(shape.vocabulary, run.seq_tokens, run.batch_rows * 4, packing=True)
    before = resident("VmRSS")
    model = prepared(asked, shape, device)
    if asked.recompute:
        recompute_layers(model)
    clock = Clock(device)
    clock.mark()
    train(
        model,
        optimizer_for(model, run),
        Batches(packed, run.batch_rows, 1, run.seed, Share(0, 1, device)),
        Schedule.of(run, steps),
        clip_norm=run.clip_norm,
        autocast=autocast_for(run, device),
        after_step=lambda _: clock.mark(),
    )
    on_gpu = peak_bytes(device)
    return {
        "step_ms": 1000 * statistics.median(clock.seconds()[asked.warmup :]),
        "peak_bytes": resident("VmHWM") - before if on_gpu is None else on_gpu,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def prepared(asked: argparse.Namespace, shape: Any, device: Any) -> Any:
    """The model as a job would train it: frozen weights in bfloat16 where the GPU has it."""
    import torch

    from benchmarks.gpu.shapes import build
    from seatrial.config.method import FullMethod, LoraMethod
    from seatrial_jobs import methods
    from seatrial_jobs.loop import has_bfloat16

    lora = asked.method == "lora"
    # Built beside the device, so that float32 weights which are not kept are in nobody's peak there.
    model = build(shape, seq_tokens=asked.seq_tokens, attention="sdpa", device="cpu")
    if lora and has_bfloat16(device):
        model = model.to(torch.bfloat16)
    section = LoraMethod(type="lora", rank=asked.rank) if lora else FullMethod(type="full")
    return methods.build(section).prepare(model.to(device))


def resident(field: str) -> int:
    """Bytes that /proc says this process holds (`VmRSS`) or has held at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"/proc/self/status: {field}: not given: this needs Linux")


def apart(asked: argparse.Namespace, method: str) -> dict[str, Any]:
    """Measure a method in a process of its own.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    settings = ("size", "seq_tokens", "batch_rows", "rank", "steps", "warmup")
    command = [sys.executable, "-m", "benchmarks.lora_vs_full", f"--method={method}"]
    command += [f"--{name.replace('_', '-')}={getattr(asked, name)}" for name in settings]
    command += ["--recompute"] if asked.recompute else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{method}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(pairs: list[tuple[dict[str, Any], dict[str, Any]]], memory: str) -> list[dict[str, Any]]:
    """The lines of rounds of LoRA and full training; ``memory`` says whose peak it is."""
    return [
        figure("step", pairs, "step_ms", "ms", 1),
        {**figure("memory", pairs, "peak_bytes", "GiB", 2**30), "of": memory},
        figure("trained", pairs, "trained", "million parameters", 1e6),
    ]


def figure(name: str, pairs: list[Any], key: str, unit: str, scale: float) -> dict[str, Any]:
    """One line: medians over the rounds, and what is usually claimed of the ratio."""
    lora, full = ([side[key] for side in sides] for sides in zip(*pairs, strict=True))
    return {
        "name": f"lora_vs_full_{name}",
        "ours": round(statistics.median(lora) / scale, 3),
        "peer": round(statistics.median(full) / scale, 3),
        "ratio": round(statistics.median(x / y for x, y in zip(lora, full, strict=True)), 4),
        "unit": unit,
        "claim": CLAIMS[name],
        "target": None,
        "peer_name": "every weight trained",
        "rounds": len(pairs),
    }


def main(given: list[str] | None = None) -> None:
    """Print LoRA's figures, those of full training, and their ratios."""
    import torch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    asked = arguments(given, on_gpu=device.type == "cuda")
    if asked.method:
        print(json.dumps(measure(asked, device)))
        return
    pairs = [(apart(asked, "lora"), apart(asked, "full")) for _ in range(asked.rounds)]
    memory = "tensors on the GPU" if device.type == "cuda" else "the process, beyond its libraries"
    for line in figures(pairs, memory):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
