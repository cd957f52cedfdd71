"""The estimate of a worker's memory, beside what torch really keeps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from seatrial.config.recipe import TrainRecipe
from seatrial_jobs.memory import activation_bytes, memory_of
from seatrial_jobs.shape import Shape

SMALL = Shape(128, 352, 4, 4, 2, 32, 1000, tied=True)
WIDE = Shape(256, 704, 4, 8, 8, 32, 2048, tied=True)


def model_of(shape: Shape) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**shape.config()))


@pytest.mark.parametrize(("shape", "halves"), [(SMALL, False), (WIDE, False), (WIDE, True)])
def test_activations_are_within_a_quarter_of_what_is_kept_for_the_backward_pass(
    shape: Shape, halves: bool
) -> None:
    model = model_of(shape)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor takes its place
        return tensor

    ids = torch.randint(0, shape.vocabulary, (2, 128))
    positions = torch.arange(128)[None].expand(2, -1)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=halves),
    ):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="sum")
    truth = sum(storage.nbytes() for storage in kept.values())
    assert activation_bytes(shape, 2 * 128, bytes_each=2 if halves else 4) == pytest.approx(truth, rel=0.25)


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


def recipe(method: dict[str, object], **resources: object) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "x",
            "service": "x",
            "data": {"train": "x.jsonl"},
            "model": {"base": "./b"},
            "method": method,
            "run": {"steps": 1, "batch_rows": 8, "seq_tokens": 128},
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

    model = get_peft_model(model_of(SMALL), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = memory_of(recipe({"type": "lora", "rank": 4, "targets": targets}), SMALL, on_gpu=True)
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)
    assert found.weights == 2 * SMALL.parameters + 4 * trained, "frozen weights are bfloat16 on GPUs"


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
    assert two.weights == whole.weights // 2 + 2 * (outside + 2 * layer)
    single = recipe({"type": "full"}, sharding="full")
    assert memory_of(single, WIDE, on_gpu=False) == alone, "one worker has nobody to share with"
