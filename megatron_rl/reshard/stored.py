"""What a Megatron distributed checkpoint holds: layers stacked in one tensor per kind, cut by no rank, read at any cut.

    decoder.layers.3.mlp.linear_fc2.weight of rank 1 of 2  is  decoder.layers.mlp.linear_fc2.weight[3:4, :, 48:96]

Layers of a model with experts differ, so each keeps its own tensors, and its experts are what is stacked:

    decoder.layers.3.mlp.experts.linear_fc2.weight5  is  decoder.layers.3.mlp.experts.experts.linear_fc2.weight[5:6]

A rank writes chunks of these tensors; who later asks for other boxes finds them in whatever chunks there are.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from megatron_rl.reshard.layout import Block, Box, Key, Layout, ModelShape, whole
from megatron_rl.reshard.names import ATTENTION, EMBEDDING, FAMILIES, FINAL_NORM, HEAD, MLP, Cut, Row

_LAYERS = "decoder.layers."
_EXPERT = re.compile(r"mlp\.experts\.(linear_fc[12])\.weight(\d+)")
_ROWS = (EMBEDDING, FINAL_NORM, HEAD, *(row for table in FAMILIES.values() for row in (*table.dense, *table.sparse)))
_CUTS = {row.transformer_engine: row.cut for row in _ROWS}


class Chunk(NamedTuple):
    """`box` of a rank's tensor is stored `at` this place of the checkpoint's tensor `name`."""

    name: str
    shape: tuple[int, ...]
    """Of the checkpoint's tensor."""
    at: Box
    tensor: Key
    box: Box


def chunks(layout: Layout, rank: int, tp: int) -> Iterator[Chunk]:
    """What this rank writes; what all tensor-parallel ranks hold alike is written by the first of them.

    The layout is one of Megatron's, of Transformer Engine's names, without replicas and with no expert dealt.
    """
    for block in layout.shards[layout.ranks[rank]].blocks:
        for short, tensor in zip(block.template, block.tensors(), strict=True):
            # A tied head that stands on a stage of its own is the embedding once more.
            if not (layout.shape.tied and short.name == HEAD.transformer_engine):
                cut = _CUTS[re.sub(r"weight\d+$", "weight{expert}", short.name)]
                size, places = _places(cut, short.shape, rank % tp, tp)
                for at, box in places:
                    yield _stacked(layout.shape, block, Chunk(short.name, size, at, tensor.key, box))


def objects(shape: ModelShape) -> tuple[str, ...]:
    """What a checkpoint holds besides tensors: a state for each linear layer, empty unless it computes in FP8."""
    if not shape.experts:
        return tuple(
            f"{_LAYERS}{name}._extra_state/shard_{layer}_{shape.layers}"
            for layer in range(shape.layers)
            for name in _linear(*ATTENTION, *MLP)
        )
    return tuple(
        f"{_LAYERS}{layer}.{name}._extra_state/{shard}"
        for layer in range(shape.layers)
        for name, shard in _states(shape, layer)
    )


def _states(shape: ModelShape, layer: int) -> Iterator[tuple[str, str]]:
    """Linear layers of a layer of a mixture, and which share of how many each state is."""
    sparse = shape.is_sparse(layer)
    for name in _linear(*ATTENTION) if sparse else _linear(*ATTENTION, *MLP):
        yield name, "shard_0_1"
    if sparse:
        for name in ("linear_fc1", "linear_fc2"):
            for expert in range(shape.experts):
                yield f"mlp.experts.experts.{name}", f"shard_{expert}_{shape.experts}"


def _linear(*rows: Row) -> list[str]:
    return sorted({row.transformer_engine.rpartition(".")[0] for row in rows})


def _stacked(shape: ModelShape, block: Block, chunk: Chunk) -> Chunk:
    """The chunk in the plane of its layer or of its expert, where it is of one."""
    if not block.local_prefix:
        return chunk
    layer = int(block.hf_prefix.split(".")[2])
    if not shape.experts:
        return _in_plane(chunk, _LAYERS + chunk.name, layer, shape.layers)
    expert = _EXPERT.fullmatch(chunk.name)
    if expert is None:
        return chunk._replace(name=f"{_LAYERS}{layer}.{chunk.name}")
    return _in_plane(chunk, f"{_LAYERS}{layer}.mlp.experts.experts.{expert[1]}.weight", int(expert[2]), shape.experts)


def _in_plane(chunk: Chunk, name: str, plane: int, planes: int) -> Chunk:
    return chunk._replace(name=name, shape=(planes, *chunk.shape), at=((plane, plane + 1), *chunk.at))


def _places(cut: Cut, size: tuple[int, ...], rank: int, tp: int) -> tuple[tuple[int, ...], tuple[tuple[Box, Box], ...]]:
    """Shape of the tensor whose share this is, and where in it which box of the share belongs."""
    all_of = whole(size)
    if cut is Cut.WHOLE:
        return size, ((all_of, all_of),) if rank == 0 else ()
    if cut is Cut.COLUMNS:
        height, width = size
        return (height, width * tp), ((((0, height), (rank * width, (rank + 1) * width)), all_of),)
    # Gate and up are two runs of rows, each cut by itself.
    runs, rest = 2 if cut is Cut.GATE_UP else 1, all_of[1:]
    rows = size[0] // runs
    return (size[0] * tp, *size[1:]), tuple(
        (
            (((run * tp + rank) * rows, (run * tp + rank + 1) * rows), *rest),
            ((run * rows, (run + 1) * rows), *rest),
        )
        for run in range(runs)
    )
