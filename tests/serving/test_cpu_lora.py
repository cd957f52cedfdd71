"""Our adapter products against vLLM's own and against the formula."""

from __future__ import annotations

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from seatrial_serving.cpu_lora import GroupedLora

pytestmark = pytest.mark.slow  # importing vLLM takes ten seconds

SLOTS, RANK, WIDTH, SLICES = 3, 8, 24, (16, 8, 8)
IDS = [11, 22, None]  # the adapter in each slot


def wrapper(kind: type[PunicaWrapperCPU], adapters: list[int], *, prefill: bool) -> PunicaWrapperCPU:
    made = kind(64, 64, torch.device("cpu"), max_loras=SLOTS)
    mapping = LoRAMapping(tuple(adapters), tuple(adapters), is_prefill=prefill)
    made.update_metadata(mapping, IDS, SLOTS, 100)
    return made


def weights(dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    a = tuple(torch.randn(SLOTS, 1, RANK, WIDTH).to(dtype) for _ in SLICES)
    return a, tuple(torch.randn(SLOTS, 1, size, RANK).to(dtype) for size in SLICES)


BATCHES = [[11, 11, 11], [22], [11, 22, 22, 11, 11]]


@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("adapters", BATCHES)
def test_the_same_as_vllms_own(adapters: list[int], prefill: bool) -> None:
    a, b = weights(torch.float32)
    x = torch.randn(len(adapters), WIDTH)
    start = torch.randn(len(adapters), sum(SLICES))
    results = []
    for kind in (PunicaWrapperCPU, GroupedLora):
        y = start.clone()
        wrapper(kind, adapters, prefill=prefill).add_lora_linear(y, x, a, b, 0.5, SLICES)
        results.append(y)
    torch.testing.assert_close(results[1], results[0])
    assert not torch.allclose(results[1], start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_gets_its_own_adapter_and_one_without_gets_none(dtype: torch.dtype) -> None:
    adapters = [11, 0, 22, 0, 11]
    a, b = weights(dtype)
    x, start = torch.randn(5, WIDTH).to(dtype), torch.randn(5, sum(SLICES)).to(dtype)
    y = start.clone()
    wrapper(GroupedLora, adapters, prefill=False).add_lora_linear(y, x, a, b, 1.0, SLICES)
    assert torch.equal(y[[1, 3]], start[[1, 3]])
    for row, slot in ((0, 0), (2, 1), (4, 0)):
        parts = [x[row].float() @ a[i][slot, 0].float().T @ b[i][slot, 0].float().T for i in range(3)]
        expected = start[row].float() + torch.cat(parts)
        tolerance = 1e-4 if dtype == torch.float32 else 0.5
        torch.testing.assert_close(y[row].float(), expected, atol=tolerance, rtol=0.02)


def test_weights_that_are_loaded_later_are_seen() -> None:
    a, b = weights(torch.float32)
    x = torch.randn(2, WIDTH)
    mixed = wrapper(GroupedLora, [11, 22], prefill=False)

    def product() -> torch.Tensor:
        y = torch.zeros(2, sum(SLICES))
        mixed.add_lora_linear(y, x, a, b, 1.0, SLICES)
        return y

    before = product()
    with torch.inference_mode():
        a[1][1, 0, :4].copy_(torch.ones(4, WIDTH))  # as the engine writes into slot 1
    after = product()
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])
    with torch.inference_mode():
        for tensor in b:
            tensor[1] = 0
    assert torch.equal(product()[1], torch.zeros(sum(SLICES)))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_output_head_that_no_adapter_changes_is_passed_over(value: float) -> None:
    torch.manual_seed(0)
    x, start = torch.randn(2, WIDTH), torch.randn(2, 32)
    a, b = torch.randn(SLOTS, 1, RANK, WIDTH), torch.full((SLOTS, 1, 32, RANK), value)
    results = []
    for kind in (PunicaWrapperCPU, GroupedLora):
        y = start.clone()
        wrapper(kind, [11, 22], prefill=False).add_lora_logits(y, x, a, b, 1.0)
        results.append(y)
    assert torch.equal(*results)
