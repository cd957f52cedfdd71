"""The estimate of a worker's memory, beside what torch really keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from seatrial.config.recipe import TrainRecipe
from seatrial_jobs.checkpoints.checkpoint import Staging, look
from seatrial_jobs.memory import activation_bytes, checkpoint_bytes, memory_of
from seatrial_jobs.plan import Plan, plan
from seatrial_jobs.shape import Shape

SMALL = Shape(128, 352, 4, 4, 2, 32, 1000, tied=True)
UNTIED = Shape(96, 200, 3, 4, 2, 32, 1000, tied=False)
WIDE = Shape(256, 704, 4, 8, 8, 32, 2048, tied=True)


def model_of(shape: Shape) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**shape.config()))


def kept_by(model: torch.nn.Module, ids: torch.Tensor, *, halves: bool) -> tuple[int, int]:
    """Bytes that a pass and its loss keep for the backward pass: copies of weights, and all else."""
    sizes = {parameter.shape for parameter in model.parameters()}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[torch.UntypedStorage, bool]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            is_copy = tensor.dtype == torch.bfloat16 and bool({tensor.shape, tensor.shape[::-1]} & sizes)
            kept[storage.data_ptr()] = storage, is_copy  # held, so that no other tensor takes its place
        return tensor

    positions = torch.arange(ids.shape[1])[None].expand(len(ids), -1)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=halves),
    ):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="sum")
    copies = sum(storage.nbytes() for storage, is_copy in kept.values() if is_copy)
    return copies, sum(storage.nbytes() for storage, _ in kept.values()) - copies


@pytest.mark.parametrize(("shape", "halves"), [(SMALL, False), (WIDE, False), (WIDE, True)])
def test_activations_are_within_a_quarter_of_what_is_kept_for_the_backward_pass(
    shape: Shape, halves: bool
) -> None:
    ids = torch.randint(0, shape.vocabulary, (2, 125))  # no weight has as many rows
    truth = kept_by(model_of(shape), ids, halves=halves)[1]
    assert activation_bytes(shape, ids.numel(), bytes_each=2 if halves else 4) == pytest.approx(
        truth, rel=0.25
    )


@pytest.mark.parametrize("shape", [SMALL, UNTIED])
def test_passes_in_bfloat16_keep_a_copy_of_each_matrix(shape: Shape) -> None:
    whole, halves = (
        memory_of(recipe({"type": "full"}, precision), shape, on_gpu=False)
        for precision in ("float32", "bfloat16")
    )
    copies, _ = kept_by(model_of(shape), torch.randint(0, shape.vocabulary, (1, 7)), halves=True)
    assert halves.weights - whole.weights == copies
    on_gpu = memory_of(recipe({"type": "full"}), shape, on_gpu=True)
    assert on_gpu.weights == halves.weights, "passes on GPUs are in bfloat16"


def test_a_checkpoints_copy_is_counted_where_it_lies() -> None:
    model = model_of(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False).logits.sum().backward()
    optimizer.step()
    copied = Staging(torch.device("cpu")).copy(look(model, optimizer))
    moments = [tensor for tensor in copied.optimizer.values() if tensor.ndim]  # not the counts of steps
    truth = sum(tensor.untyped_storage().nbytes() for tensor in [*copied.weights.values(), *moments])
    full = recipe({"type": "full"})
    assert memory_of(full, SMALL, on_gpu=False).checkpoint == checkpoint_bytes(full, SMALL) == truth
    assert memory_of(full, SMALL, on_gpu=True).checkpoint == 0, "it lies in the host's memory"
    shared = recipe({"type": "full"}, workers=4, sharding="full")
    assert checkpoint_bytes(shared, SMALL) == truth // 4
    assert checkpoint_bytes(recipe({"type": "full"}, workers=4), SMALL) == truth


def test_the_plan_tells_the_memory_of_a_gpus_host_apart(data: Path, tiny_base: Path) -> None:
    def planned(device: str) -> Plan:
        wanted = recipe({"type": "full"}, device=device).model_dump()
        files = {"data": {"train": str(data / "pairs.jsonl")}, "model": {"base": str(tiny_base)}}
        return plan(TrainRecipe.model_validate({**wanted, **files}))

    on_cpu, on_gpu = planned("cpu"), planned("gpu")
    assert on_cpu.memory is not None
    assert on_gpu.memory is not None
    assert (on_cpu.memory.checkpoint, on_cpu.host_memory) == (12 * on_cpu.parameters, None)
    assert (on_gpu.memory.checkpoint, on_gpu.host_memory) == (0, 12 * on_gpu.parameters)


def test_recomputed_layers_and_chunks_of_the_loss_need_less():
    shape, tokens = Shape(2048, 8192, 16, 32, 8, 64, 128256, tied=True), 16384
    whole = activation_bytes(shape, tokens, bytes_each=2)
    chunked = activation_bytes(shape, tokens, bytes_each=2, chunk_tokens=2048)
    # Of 12 bytes a logit, 4 stay for all tokens and 12 for those of a chunk.
    assert whole - chunked == (8 * tokens - 12 * 2048) * shape.vocabulary
    recomputed = activation_bytes(shape, tokens, bytes_each=2, recompute=True)
    layers, rest = whole - 12 * tokens * shape.vocabulary, recomputed - 12 * tokens * shape.vocabulary
    assert rest == layers // shape.layers + 4 * shape.layers * shape.hidden * tokens
    assert activation_bytes(shape, 100, bytes_each=2, chunk_tokens=2048) > 12 * 100 * shape.vocabulary


def recipe(method: dict[str, object], precision: str = "auto", **resources: object) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "x",
            "service": "x",
            "data": {"train": "x.jsonl"},
            "model": {"base": "./b"},
            "method": method,
            "run": {"steps": 1, "batch_rows": 8, "seq_tokens": 128, "precision": precision},
            "resources": resources,
        }
    )


def test_full_training_keeps_a_gradient_and_two_moments_of_every_weight() -> None:
    count = sum(parameter.numel() for parameter in model_of(SMALL).parameters())
    found = memory_of(recipe({"type": "full"}), SMALL, on_gpu=False)
    assert (found.weights, found.gradients, found.optimizer) == (4 * count, 4 * count, 8 * count)
    two = memory_of(recipe({"type": "full"}, workers=2), SMALL, on_gpu=False)
    assert two.gradients == 8 * count
    assert two.activations == found.activations // 2


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_adapters_are_counted_as_peft_makes_them(targets: object) -> None:
    from peft import LoraConfig, get_peft_model

    base = model_of(SMALL).to(torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = memory_of(recipe({"type": "lora", "rank": 4, "targets": targets}), SMALL, on_gpu=True)
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)
    assert found.weights == 2 * SMALL.parameters + (4 + 2) * trained, "frozen weights are bfloat16 on GPUs"
    copies, _ = kept_by(model, torch.randint(0, SMALL.vocabulary, (1, 7)), halves=True)
    # What the first layer sees needs no gradient, so some of its matrices A are not kept.
    assert copies == pytest.approx(2 * trained, rel=0.15)


def test_sharded_workers_divide_weights_gradients_and_optimizer() -> None:
    alone = memory_of(recipe({"type": "full"}), WIDE, on_gpu=False)
    four = memory_of(recipe({"type": "full"}, workers=4, sharding="full"), WIDE, on_gpu=False)
    outside, layer = WIDE.parameters - WIDE.block, WIDE.block // WIDE.layers
    assert four.weights == alone.weights // 4 + 4 * (outside + 2 * layer)
    assert four.gradients == alone.gradients // 4 + 8 * (outside + layer)
    assert four.optimizer == alone.optimizer // 4
    lora = {"type": "lora", "rank": 4}
    two = memory_of(recipe(lora, workers=2, sharding="full"), WIDE, on_gpu=True)
    whole = memory_of(recipe(lora, workers=2), WIDE, on_gpu=True)
    assert two.optimizer == whole.optimizer // 2
    copies = whole.weights - (2 * WIDE.parameters + whole.optimizer // 2)  # autocast's, of the adapter
    assert copies == whole.optimizer // 4
    assert two.weights == (whole.weights - copies) // 2 + 2 * (outside + 2 * layer)
    single = recipe({"type": "full"}, sharding="full")
    assert memory_of(single, WIDE, on_gpu=False) == alone, "one worker has nobody to share with"
