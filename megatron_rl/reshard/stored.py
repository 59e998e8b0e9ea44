"""What a Megatron distributed checkpoint holds: layers stacked in one tensor per kind, cut by no rank, read at any cut.

    decoder.layers.3.mlp.linear_fc2.weight of rank 1 of 2  is  decoder.layers.mlp.linear_fc2.weight[3:4, :, 48:96]

A rank writes chunks of these tensors; who later asks for other boxes finds them in whatever chunks there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

from megatron_rl.reshard.layout import Block, Box, Key, Layout, LayoutError, ModelShape, whole
from megatron_rl.reshard.names import ATTENTION, EMBEDDING, FAMILIES, FINAL_NORM, HEAD, MLP, Cut

_LAYERS = "decoder.layers."
_ROWS = (EMBEDDING, FINAL_NORM, HEAD, *(row for table in FAMILIES.values() for row in table.dense))
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

    The layout is one of Megatron's, of Transformer Engine's names and without replicas.
    """
    if layout.shape.experts:
        raise LayoutError(f"{layout.shape.family} has experts, which checkpoints are not converted with.")
    for block in layout.shards[layout.ranks[rank]].blocks:
        for short, tensor in zip(block.template, block.tensors(), strict=True):
            # A tied head that stands on a stage of its own is the embedding once more.
            if not (layout.shape.tied and short.name == HEAD.transformer_engine):
                size, places = _places(_CUTS[short.name], short.shape, rank % tp, tp)
                for at, box in places:
                    yield _stacked(layout.shape, block, Chunk(short.name, size, at, tensor.key, box))


def objects(shape: ModelShape) -> tuple[str, ...]:
    """What a checkpoint holds besides tensors: a state for each linear layer, empty unless it computes in FP8."""
    linear = {row.transformer_engine.rpartition(".")[0] for row in (*ATTENTION, *MLP)}
    return tuple(
        f"{_LAYERS}{name}._extra_state/shard_{layer}_{shape.layers}"
        for layer in range(shape.layers)
        for name in sorted(linear)
    )


def _stacked(shape: ModelShape, block: Block, chunk: Chunk) -> Chunk:
    """The chunk in the plane of its layer, where it is of one."""
    if not block.local_prefix:
        return chunk
    layer = int(block.hf_prefix.split(".")[2])
    plane: Box = ((layer, layer + 1),)
    return chunk._replace(name=_LAYERS + chunk.name, shape=(shape.layers, *chunk.shape), at=plane + chunk.at)


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
