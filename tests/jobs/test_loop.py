"""The loop: packed rows equal separate documents, and the cut into workers and passes does not matter."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from seatrial.config.method import FullMethod, LoraMethod
from seatrial.config.run import RunSection
from seatrial_jobs import methods
from seatrial_jobs.batches import Batches, Share, every, to_batch
from seatrial_jobs.data.chat import IGNORED, Encoded
from seatrial_jobs.data.pack import Packed, pack
from seatrial_jobs.evaluate import heldout_loss
from seatrial_jobs.loop import (
    Schedule,
    Step,
    autocast_for,
    loss_for,
    optimizer_for,
    recompute_layers,
    token_loss,
    train,
)
from seatrial_jobs.workers.probe import keeps_apart

CPU = torch.device("cpu")
ALONE = Share(0, 1, CPU)


def documents(count: int, *, seed: int = 0) -> list[Encoded]:
    """Random documents of 5 to 40 tokens whose second half has a loss."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = chance.integers(6, 400, chance.integers(5, 40)).tolist()
        half = len(ids) // 2
        found.append(Encoded(ids, [IGNORED] * half + ids[half:]))
    return found


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def run_of(**settings: Any) -> RunSection:
    return RunSection(**{"steps": 6, "seq_tokens": 64, "batch_rows": 8, "learning_rate": 0.01, **settings})


def losses(model: torch.nn.Module, packed: Packed, run: RunSection, *, apart: bool = False) -> list[float]:
    seen: list[Step] = []
    train(
        model,
        optimizer_for(model, run),
        Batches(packed, run.batch_rows, run.accumulate, run.seed, ALONE, apart=apart),
        Schedule.of(run, run.steps or 0),
        clip_norm=run.clip_norm,
        loss_of=loss_for(run),
        after_step=seen.append,
    )
    assert [step.number for step in seen] == list(range(1, len(seen) + 1))
    return [float(step.loss) for step in seen]


def test_packed_logits_equal_those_of_each_document_alone(model: Any):
    texts = documents(12)
    packed = pack(texts, 96)
    assert packed.rows < len(texts) / 2, "the documents must really share rows"
    batch = to_batch(packed, np.arange(packed.rows), CPU)
    with torch.inference_mode():
        together = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        compared = 0
        for text in texts:
            ids = torch.tensor([text.input_ids])
            alone = model(input_ids=ids, use_cache=False).logits[0]
            row, start = find(packed, text.input_ids)
            inside = together[row, start : start + len(text.input_ids)]
            torch.testing.assert_close(inside, alone, rtol=1e-5, atol=1e-5)
            compared += 1
    assert compared == len(texts)


def find(packed: Packed, ids: list[int]) -> tuple[int, int]:
    for row in range(packed.rows):
        for start in np.flatnonzero(packed.position_ids[row] == 0):
            if packed.input_ids[row, start : start + len(ids)].tolist() == ids:
                return row, int(start)
    raise AssertionError("not packed")


def test_packed_loss_is_the_sum_over_documents(model: Any):
    texts = documents(10)
    packed = pack(texts, 96)
    with torch.inference_mode():
        together = sum(float(token_loss(model, batch)) for batch in every(packed, 2, ALONE))
        apart = sum(
            float(token_loss(model, batch))
            for text in texts
            for batch in every(pack([text], len(text.input_ids)), 1, ALONE)
        )
    assert together == pytest.approx(apart, rel=1e-5)


SIZES = {"vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64, "dropout": 0.0},
    "bloom": {"n_head": 2, "n_layer": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None},
}


def of_family(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name]})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def test_a_model_that_mixes_packed_documents_is_found_out(model: Any):
    packed = pack(documents(12), 96)
    found = {name: keeps_apart(of_family(name), packed, CPU) for name in FAMILIES}
    assert found == {"opt": False, "bloom": False, "gpt2": True}
    assert keeps_apart(model, packed, CPU)
    assert keeps_apart(of_family("opt"), pack(documents(12), 40), CPU) is False
    model.train()
    keeps_apart(model, packed, CPU)
    assert model.training


def test_rows_of_one_document_need_no_probe():
    alone = pack([Encoded(list(range(6, 46)), list(range(6, 46)))] * 3, 48)
    assert keeps_apart(of_family("opt"), alone, CPU)


def test_documents_apart_give_each_model_the_loss_of_each_document_alone():
    texts = documents(12)
    packed = pack(texts, 96)
    for name in FAMILIES:
        family = of_family(name).eval()

        def total(packed: Packed, family: Any = family, **how: bool) -> float:
            with torch.inference_mode():
                return sum(float(token_loss(family, batch)) for batch in every(packed, 2, ALONE, **how))

        alone = sum(total(pack([text], len(text.input_ids))) for text in texts)
        assert total(packed, apart=True) == pytest.approx(alone, rel=2e-6), name
        mixed = name != "gpt2"
        assert (total(packed) != pytest.approx(alone, rel=2e-6)) == mixed, name


def test_documents_apart_are_the_same_steps_in_no_more_memory(model: Any, tiny_base: Path):
    packed = pack(documents(60), 64)
    apart = Batches(packed, 8, 2, 0, Share(1, 2, CPU), apart=True)
    together = Batches(packed, 8, 2, 0, Share(1, 2, CPU))
    for step in range(3):
        passes = apart.at(step)
        assert max(batch.input_ids.numel() for batch in passes) <= 2 * 64
        learnt, wanted = (
            sorted(token for batch in at for token in batch.targets.flatten().tolist() if token != IGNORED)
            for at in (passes, together.at(step))
        )
        assert learnt == wanted
    again: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    assert losses(again, packed, run_of(), apart=True) == pytest.approx(
        losses(model, packed, run_of()), abs=1e-5
    )


def test_accumulation_does_not_change_the_losses(tiny_base: Path):
    packed = pack(documents(60), 64)

    def with_passes(accumulate: int) -> list[float]:
        fresh = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        return losses(fresh, packed, run_of(accumulate=accumulate))

    assert with_passes(4) == pytest.approx(with_passes(1), abs=1e-5)


@pytest.mark.parametrize("chunk_tokens", [7, 512, 100_000])
def test_the_loss_in_chunks_gives_the_same_training(tiny_base: Path, chunk_tokens: int):
    packed = pack(documents(60), 64)

    def with_chunks(count: int | None) -> list[float]:
        fresh = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        return losses(fresh, packed, run_of(loss_chunk_tokens=count))

    assert with_chunks(chunk_tokens) == pytest.approx(with_chunks(None), abs=1e-5)


def test_chunks_keep_less_than_the_whole_loss(model: Any):
    batch = to_batch(pack(documents(60), 64), np.arange(8), CPU)

    def kept(chunk_tokens: int | None) -> int:
        sizes: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            # Of float32 there are only the loss's: the model is in bfloat16 here.
            logits = tensor.dtype is torch.float32 and tensor.shape[-1:] == (400,)
            sizes.append(tensor.numel() if logits else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            token_loss(model.to(torch.bfloat16), batch, chunk_tokens)
        return sum(sizes)

    assert kept(None) >= 8 * 64 * 400
    assert kept(64) == 0


@pytest.mark.parametrize("method", [FullMethod(type="full"), LoraMethod(type="lora", rank=4)])
def test_recomputed_layers_give_the_same_training_and_keep_less(tiny_base: Path, method: Any):
    packed = pack(documents(60), 64)

    def fresh(recompute: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        made = methods.build(method).prepare(base)
        if recompute:
            recompute_layers(made)
        return made

    def kept(model: torch.nn.Module) -> int:
        sizes: list[int] = []
        model.train()  # as the loop does
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            token_loss(model, to_batch(packed, np.arange(8), CPU))
        return sum(sizes)

    assert losses(fresh(True), packed, run_of()) == pytest.approx(
        losses(fresh(False), packed, run_of()), abs=1e-5
    )
    assert kept(fresh(True)) < kept(fresh(False)) / 2


@pytest.mark.parametrize("method", [FullMethod(type="full"), LoraMethod(type="lora", rank=4)])
def test_dropout_is_what_the_base_says_in_every_way_to_train_and_off_in_measurements(method: Any):
    packed = pack(documents(60), 64)

    def trained(share: float, seed: int, *, recompute: bool = False) -> tuple[list[float], list[float]]:
        torch.manual_seed(0)
        config = AutoConfig.for_model("llama", **SIZES, intermediate_size=128, attention_dropout=share)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # as it is when loaded
        made = methods.build(method).prepare(base)
        if recompute:
            recompute_layers(made)
        torch.manual_seed(seed)
        found = losses(made, packed, run_of(steps=3))
        return found, [heldout_loss(made, packed, 2, ALONE, nullcontext) for _ in range(2)]

    first, measured = trained(0.5, 1)
    assert trained(0.5, 2)[0] != pytest.approx(first, abs=1e-4)
    assert trained(0.5, 1, recompute=True)[0] == pytest.approx(first, abs=1e-5)
    assert trained(0.0, 2)[0] == trained(0.0, 1)[0]
    assert measured[0] == measured[1]


def test_the_compiled_loss_gives_the_same_training(tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    # Traced and differentiated as on a GPU, but run by torch's own kernels: no C++ compiler is needed.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    packed = pack(documents(60), 64)

    def compiled(compile: bool) -> list[float]:
        fresh = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        return losses(fresh, packed, run_of(compile=compile, loss_chunk_tokens=256 if compile else None))

    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled(True) == pytest.approx(compiled(False), abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs


def test_rows_of_one_document_need_no_positions():
    full, shared = pack([Encoded([7] * 64, [7] * 64)] * 3, 64), pack(documents(60), 64)
    assert to_batch(full, np.arange(2), CPU).position_ids is None
    assert to_batch(shared, np.arange(2), CPU).position_ids is not None


def test_the_gradients_of_all_workers_sum_to_those_of_one(model: Any):
    packed = pack(documents(60), 64)

    def gradient(size: int) -> torch.Tensor:
        model.zero_grad()
        for rank in range(size):
            batches = Batches(packed, 8, 2, 0, Share(rank, size, CPU))
            for batch in batches.at(3):
                (token_loss(model, batch) / batches.loss_tokens(3)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(4), gradient(1), rtol=1e-4, atol=1e-6)


def test_every_row_of_a_step_goes_to_exactly_one_pass_of_one_worker():
    packed = pack(documents(60), 64)
    whole = Batches(packed, 8, 1, 5, ALONE).at(2)[0].input_ids
    parts = [
        batch.input_ids for rank in range(2) for batch in Batches(packed, 8, 2, 5, Share(rank, 2, CPU)).at(2)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_heldout_loss_is_the_token_mean_and_leaves_the_model_training(model: Any):
    packed = pack(documents(10), 96)
    model.train()
    found = heldout_loss(model, packed, 2, ALONE, autocast_for(run_of(), CPU))
    with torch.inference_mode():
        total = sum(float(token_loss(model, batch)) for batch in every(packed, 1, ALONE))
    assert found == pytest.approx(total / packed.label_tokens, rel=1e-5)
    assert model.training


class WidestFloats(TorchDispatchMode):
    """Notes the most rows of float32 logits that an operation makes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32 and made.ndim >= 2:
            is_logits = made.shape[-1] == self.vocabulary
            self.rows = max(self.rows, made.numel() // self.vocabulary if is_logits else 0)
        return made


def test_measuring_makes_float32_logits_of_a_chunk_at_a_time(model: Any):
    packed = pack(documents(10), 96)
    halves = autocast_for(run_of(precision="bfloat16"), CPU)

    def measured(chunk: int | None) -> tuple[float, int]:
        with WidestFloats(model.config.vocab_size) as widest:
            loss = heldout_loss(model, packed, 2, ALONE, halves, chunk_tokens=chunk)
        return loss, widest.rows

    (whole, all_rows), (chunked, rows) = measured(None), measured(32)
    assert (all_rows, rows) == (2 * 96, 32)
    assert chunked == pytest.approx(whole, rel=1e-6)


def test_the_schedule_rises_and_falls_linearly_and_is_never_zero():
    schedule = Schedule(peak=1.0, warmup_steps=4, steps=20)
    rates = [schedule.rate(step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert np.diff(rates[4:]) == pytest.approx([-1 / 16] * 15)
    assert rates[-1] == pytest.approx(1 / 16)
    assert Schedule(1.0, 0, 1).rate(0) == 1.0


def test_bfloat16_arithmetic_is_near_float32_and_only_where_asked_on_a_cpu(model: Any):
    batch = to_batch(pack(documents(10), 96), np.arange(2), CPU)
    exact = token_loss(model, batch).detach()
    with autocast_for(run_of(), CPU)():
        assert torch.equal(token_loss(model, batch).detach(), exact)
    with autocast_for(run_of(precision="bfloat16"), CPU)():
        rough = token_loss(model, batch).detach()
    assert rough != exact
    assert float(rough) == pytest.approx(float(exact), rel=1e-2)


def test_bfloat16_that_a_gpu_only_emulates_is_not_chosen(monkeypatch: pytest.MonkeyPatch):
    # torch's default answer counts emulation, which is slower than float32 (no GPU here to ask).
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    gpu = torch.device("cuda")
    assert autocast_for(run_of(), gpu) is nullcontext
    assert autocast_for(run_of(precision="bfloat16"), gpu) is not nullcontext


# The losses of 6 steps on fixed data with fixed weights: a change of a method shows here first.
GOLDEN = {
    "full": [5.999, 6.0042, 5.9893, 5.7465, 5.7387, 5.6314],
    "lora": [5.999, 6.0021, 5.9838, 5.93, 5.8978, 5.912],
}


@pytest.mark.parametrize(
    "section", [FullMethod(type="full"), LoraMethod(type="lora", rank=4)], ids=lambda section: section.type
)
def test_golden_losses(model: Any, section: FullMethod | LoraMethod):
    torch.manual_seed(7)
    prepared = methods.build(section).prepare(model)
    found = losses(prepared, pack(documents(60), 64), run_of())
    assert found == pytest.approx(GOLDEN[section.type], abs=2e-4)
    assert found[-1] < found[0]
