"""Random models, layouts of them and placements, from a seed."""

from dataclasses import dataclass

import numpy as np

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import Layout, ModelShape
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import Placement, colocated, split, together

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True, kw_only=True)
class Case:
    source: Layout
    target: Layout
    placement: Placement


def random_case(seed: int) -> Case:
    """A random source, target and placement of one random model."""
    rng = np.random.default_rng(seed)
    shape = random_shape(rng)
    source, target = random_layout(rng, shape), random_layout(rng, shape)
    return Case(source=source, target=target, placement=random_placement(rng, source, target))


def random_shape(rng: np.random.Generator) -> ModelShape:
    family = str(rng.choice(FAMILIES))
    kv_heads = int(rng.choice([1, 2, 4, 8]))
    layers = int(rng.integers(1, 6))
    sparse = family == "qwen3_moe"
    return ModelShape(
        family=family,
        layers=layers,
        hidden=int(rng.choice([8, 24])),
        heads=max(8, kv_heads) * int(rng.choice([1, 2])),
        kv_heads=kv_heads,
        head_dim=int(rng.choice([4, 8])),
        ffn=int(rng.choice([8, 16, 40])),
        vocabulary=int(rng.integers(17, 150)),
        tied=bool(rng.integers(2)),
        experts=4 if sparse else 0,
        expert_ffn=8 if sparse else 0,
        dense_layers=tuple(layer for layer in range(layers) if rng.random() < 0.3) if sparse else (),
    )


def random_layout(rng: np.random.Generator, shape: ModelShape) -> Layout:
    kind = rng.choice(["megatron", "megatron", "vllm", "vllm", "hugging face"])
    if kind == "megatron":
        modules = "local" if rng.integers(2) else "transformer_engine"
        return megatron_layout(shape, random_parallel(rng, shape), modules=modules)
    if kind == "vllm":
        return vllm_layout(shape, int(rng.choice([1, 2, 4, 8])), int(rng.integers(1, 4)))
    return huggingface_layout(shape, int(rng.integers(1, 4)))


def random_parallel(rng: np.random.Generator, shape: ModelShape) -> Parallel:
    tp, dp, cp = (int(rng.choice(sizes)) for sizes in ([1, 2, 4, 8], [1, 2, 4], [1, 1, 2]))
    pp = int(rng.choice([size for size in (1, 2, 3, 4) if size <= shape.layers]))
    vpp = 2 if pp > 1 and 2 * pp <= shape.layers and rng.integers(2) else 1
    ep = int(rng.choice([size for size in (1, 2, 4) if (tp * dp * cp) % size == 0])) if shape.experts else 1
    chunks = pp * vpp
    uneven = np.bincount(rng.integers(0, chunks, shape.layers - chunks), minlength=chunks) + 1
    layers = tuple(int(count) for count in uneven) if shape.layers % chunks or rng.integers(2) else ()
    return Parallel(tp=tp, pp=pp, vpp=vpp, dp=dp, cp=cp, ep=ep, stage_layers=layers)


def random_placement(rng: np.random.Generator, source: Layout, target: Layout) -> Placement:
    sources, targets = len(source.ranks), len(target.ranks)
    kind = rng.choice(["split", "colocated", "together", "shuffled", "crowded"])
    if kind == "split":
        return split(source, target)
    if kind == "colocated":
        return colocated(source, target)
    if kind == "together":
        return together(source, target)
    gpus = rng.permutation(sources + targets)[:targets]
    own = range(sources) if kind == "shuffled" else rng.integers(0, max(1, sources // 2), sources)
    return Placement(source=tuple(int(gpu) for gpu in own), target=tuple(int(gpu) for gpu in gpus))
