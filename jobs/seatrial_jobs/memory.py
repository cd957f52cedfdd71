"""How many bytes a worker needs, from the sizes of its model: an estimate for the plan.

P weights, of which t are trained; b rows of T tokens in a pass; h, f, H, K, d, V as in the model's
configuration (hidden, feed-forward, heads, key-value heads, head size, vocabulary); L layers; w bytes a
weight and a bytes an activation (4, or 2 in bfloat16):

- weights      w P                                        (frozen weights are bfloat16 on GPUs)
- their copies 2 for each float32 weight of a matrix      (where passes are in bfloat16: torch.autocast's)
- gradients    4 t, twice with several workers            (DistributedDataParallel's buckets)
- optimizer    8 t                                        (AdamW's two moments in float32)
- checkpoint   12 t                                       (the copy that is written while training goes on)
- activations  b T (L (a (6 h + 2 (H + K) d + 4 f) + 8 h) + 12 V)

autocast keeps its copies for the backward pass; norms, and embeddings that are only looked up, have none. The
copy for checkpoints (torch's `DefaultStager`) is of trained weights and moments and is used again for each.
It lies in the host's memory, so on GPUs it is none of the device's. Without sharding the first worker alone
has one, since it alone writes.

With `resources.sharding: full`, N workers divide weights, gradients, optimizer and checkpoint, and autocast
copies nothing. Each holds besides, put together, what lies outside of the layers (E weights, e of them
trained) and two layers (P' each, p' trained):

- weights      w P / N + a (E + 2 P')
- gradients    4 t / N + (a + 4) (e + p')                 (a layer's whole gradient, and the sum that is sent)
- optimizer    8 t / N
- checkpoint   12 t / N

With `run.recompute` a layer keeps its input alone, 4 h, besides one layer that is being computed again. With
`run.loss_chunk_tokens` c, logits take 2 a V a token, their gradient included, and 12 V for c tokens.

The activations are what the backward pass of a Llama block keeps: the inputs of its seven matrices, both
norms' inputs and outputs (float32 once more each), queries, keys and values after rotation, and three
tensors of the gated feed-forward part. Attention scores are never kept (Dao et al. 2022, arXiv:2205.14135;
Korthikanti et al. 2022, arXiv:2205.05198, count GPT blocks in this way). Logits are kept in float32 with
their softmax and its gradient. What CUDA, torch and fragmentation take besides is not in it: leave 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from seatrial.config.method import LoraMethod
from seatrial.config.recipe import PretrainRecipe, TrainRecipe
from seatrial_jobs.shape import Shape


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, of the one that needs most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    checkpoint: int
    """None on GPUs, where :func:`checkpoint_bytes` are the host's."""


def memory_of(recipe: TrainRecipe | PretrainRecipe, shape: Shape, *, on_gpu: bool) -> Memory:
    """What one worker of the recipe needs."""
    run, workers = recipe.run, recipe.resources
    rows = run.batch_rows // (workers.min_workers * run.accumulate)
    is_lora, trained, parts = _is_lora(recipe), _trained_weights(recipe, shape), _parts(recipe)
    bytes_each = 2 if run.precision == "bfloat16" or (run.precision == "auto" and on_gpu) else 4
    each = _bytes_of_weight(recipe, frozen=is_lora, on_gpu=on_gpu)
    weights = each * shape.parameters + (4 * trained if is_lora else 0)
    gradients = 4 * trained * (2 if workers.max_workers > 1 else 1)
    if parts > 1:
        outside, layer = shape.parameters - shape.block, shape.block // shape.layers
        learnt = trained // shape.layers if is_lora else outside + layer
        weights = weights // parts + bytes_each * (outside + 2 * layer)
        gradients = 4 * trained // parts + (bytes_each + 4) * learnt
    elif bytes_each == 2:
        matrices = shape.block + shape.vocabulary * shape.hidden
        weights += 2 * (matrices * (each == 4) + trained * is_lora)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=8 * trained // parts,
        activations=activation_bytes(
            *(shape, rows * run.seq_tokens),
            bytes_each=bytes_each,
            recompute=run.recompute,
            chunk_tokens=run.loss_chunk_tokens,
        ),
        checkpoint=0 if on_gpu else checkpoint_bytes(recipe, shape),
    )


def checkpoint_bytes(recipe: TrainRecipe | PretrainRecipe, shape: Shape) -> int:
    """What the copy of a checkpoint takes of the memory of a worker's host."""
    return 12 * _trained_weights(recipe, shape) // _parts(recipe)


def activation_bytes(
    shape: Shape,
    tokens: int,
    *,
    bytes_each: int,
    recompute: bool = False,
    chunk_tokens: int | None = None,
) -> int:
    """Bytes that are kept for the backward pass over so many tokens."""
    s = shape
    block = bytes_each * (6 * s.hidden + 2 * (s.heads + s.kv_heads) * s.head_dim + 4 * s.feed_forward)
    block += 8 * s.hidden
    layers = s.layers * 4 * s.hidden + block if recompute else s.layers * block
    if chunk_tokens is None:
        return tokens * (layers + 12 * s.vocabulary)
    logits = 2 * bytes_each * tokens + 12 * min(chunk_tokens, tokens)
    return tokens * layers + logits * s.vocabulary


def _bytes_of_weight(recipe: TrainRecipe | PretrainRecipe, *, frozen: bool, on_gpu: bool) -> int:
    dtype = recipe.model.dtype if isinstance(recipe, TrainRecipe) else "float32"
    if dtype == "auto":
        return 2 if frozen and on_gpu else 4
    return 4 if dtype == "float32" else 2


def _is_lora(recipe: TrainRecipe | PretrainRecipe) -> bool:
    return isinstance(recipe, TrainRecipe) and isinstance(recipe.method, LoraMethod)


def _parts(recipe: TrainRecipe | PretrainRecipe) -> int:
    """Workers that divide what is trained."""
    return recipe.resources.min_workers if recipe.resources.sharding == "full" else 1


def _trained_weights(recipe: TrainRecipe | PretrainRecipe, shape: Shape) -> int:
    if isinstance(recipe, TrainRecipe) and isinstance(recipe.method, LoraMethod):
        return _adapter_weights(recipe.method, shape)
    return shape.parameters


def _adapter_weights(method: LoraMethod, shape: Shape) -> int:
    """Weights of A (r, in) and B (out, r) over the adapted layers; unknown names count as all of them."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "q_proj": shape.hidden + queries,
        "k_proj": shape.hidden + keys,
        "v_proj": shape.hidden + keys,
        "o_proj": queries + shape.hidden,
        "gate_proj": shape.hidden + shape.feed_forward,
        "up_proj": shape.hidden + shape.feed_forward,
        "down_proj": shape.feed_forward + shape.hidden,
    }
    known = method.targets != "all-linear" and all(name in sizes for name in method.targets)
    names = method.targets if known else tuple(sizes)
    return shape.layers * method.rank * sum(sizes[name] for name in names)
