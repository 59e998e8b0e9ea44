"""What each rank of a rollout group holds, and what a Hugging Face checkpoint holds."""

from collections.abc import Iterator

from megatron_rl.reshard import cuts
from megatron_rl.reshard.layout import Block, Box, Layout, LocalTensor, ModelShape, Piece, Shard, share, whole
from megatron_rl.reshard.names import EMBEDDING, FINAL_NORM, HEAD, Cut, Row

VLLM_VOCABULARY_MULTIPLE = 64
"""vLLM pads the rows of the vocabulary to a multiple of this."""


def vllm_layout(shape: ModelShape, tp: int, replicas: int = 1) -> Layout:
    """`replicas` rollout groups of `tp` vLLM workers: rank `g * tp + r` is tensor-parallel rank `r` of group `g`."""
    shards = tuple(_vllm_shard(shape, rank, tp) for rank in range(tp))
    return Layout(
        shape=shape, shards=shards, ranks=tuple(range(tp)) * replicas, group=tp, label=f"vllm tp{tp} replicas{replicas}"
    )


def huggingface_layout(shape: ModelShape, replicas: int = 1) -> Layout:
    """Whole tensors under their Hugging Face names on each of `replicas` ranks: a checkpoint, or an embedded engine."""
    templates = {
        sparse: tuple(_hf_tensors(rows, shape))
        for sparse, rows in {shape.is_sparse(layer): shape.rows(layer) for layer in range(shape.layers)}.items()
    }
    ends = (EMBEDDING, FINAL_NORM) if shape.tied else (EMBEDDING, FINAL_NORM, HEAD)
    layers = (
        Block(
            template=templates[shape.is_sparse(layer)],
            hf_prefix=f"model.layers.{layer}.",
            local_prefix=f"model.layers.{layer}.",
        )
        for layer in range(shape.layers)
    )
    shard = Shard(blocks=(Block(template=tuple(_hf_tensors(ends, shape))), *layers))
    return Layout(shape=shape, shards=(shard,), ranks=(0,) * replicas, label=f"hugging face replicas{replicas}")


def _hf_tensors(rows: tuple[Row, ...], shape: ModelShape) -> Iterator[LocalTensor]:
    for row in rows:
        for name in row.hf:
            experts = range(shape.experts) if "{expert}" in name else range(1)
            for expert in experts:
                (full,) = cuts.numbered((name,), expert)
                yield cuts.replicated(full, full, shape)


def _vllm_shard(shape: ModelShape, rank: int, tp: int) -> Shard:
    templates = {
        sparse: tuple(_vllm_tensor(row, shape, rank, tp) for row in rows)
        for sparse, rows in {shape.is_sparse(layer): shape.rows(layer) for layer in range(shape.layers)}.items()
    }
    ends = (EMBEDDING, FINAL_NORM) if shape.tied else (EMBEDDING, FINAL_NORM, HEAD)
    layers = (
        Block(
            template=templates[shape.is_sparse(layer)],
            hf_prefix=f"model.layers.{layer}.",
            local_prefix=f"model.layers.{layer}.",
        )
        for layer in range(shape.layers)
    )
    return Shard(blocks=(Block(template=tuple(_vllm_tensor(row, shape, rank, tp) for row in ends)), *layers))


def _vllm_tensor(row: Row, shape: ModelShape, rank: int, tp: int) -> LocalTensor:
    name, hf = row.vllm, row.hf[0]
    if "{expert}" in hf:
        return _vllm_experts(row, shape, rank, tp)
    match row.cut:
        case Cut.QKV:
            return cuts.stacked(name, cuts.vllm_qkv(row, shape, rank, tp), shape)
        case Cut.GATE_UP:
            return cuts.stacked(name, cuts.gate_up(row.hf, shape, rank, tp), shape)
        case Cut.COLUMNS:
            return cuts.columns(name, hf, shape, rank, tp)
        case Cut.VOCABULARY:
            multiple = VLLM_VOCABULARY_MULTIPLE
            padded = -(-shape.vocabulary // multiple) * multiple
            return cuts.vocabulary(name, hf, shape, share(padded, rank, tp, "rows of vLLM's padded vocabulary"))
        case Cut.WHOLE:
            return cuts.replicated(name, hf, shape)


def _vllm_experts(row: Row, shape: ModelShape, rank: int, tp: int) -> LocalTensor:
    """All experts in one tensor, expert first; the expert's own axes are cut as a dense MLP's are."""
    pieces: list[Piece] = []
    for expert in range(shape.experts):
        names = cuts.numbered(row.hf, expert)
        if row.cut is Cut.GATE_UP:
            one = cuts.stacked(row.vllm, cuts.gate_up(names, shape, rank, tp), shape)
        else:
            one = cuts.columns(row.vllm, names[0], shape, rank, tp)
        plane: Box = ((expert, expert + 1),)
        pieces.extend(piece._replace(at=plane + piece.at) for piece in one.pieces)
    return LocalTensor(
        name=row.vllm, shape=(shape.experts, *(stop for _, stop in whole(one.shape))), pieces=tuple(pieces)
    )
