"""How one row of a family's table becomes the tensor of one tensor-parallel rank.

A tensor fused of several Hugging Face tensors is a sequence of `Run`s of their rows, one under the other.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from megatron_rl.reshard.layout import Box, Interval, LayoutError, LocalTensor, ModelShape, Piece, share, whole
from megatron_rl.reshard.names import Row


class Run(NamedTuple):
    """Rows `start` to `stop` of a Hugging Face tensor."""

    hf: str
    start: int
    stop: int


def replicated(name: str, hf: str, shape: ModelShape) -> LocalTensor:
    """All of a Hugging Face tensor."""
    size = shape.hf_shape(hf)
    return LocalTensor(name=name, shape=size, pieces=(Piece(hf, whole(size), whole(size)),))


def columns(name: str, hf: str, shape: ModelShape, rank: int, tp: int) -> LocalTensor:
    """A rank's range of input columns."""
    height, width = shape.hf_shape(hf)
    start, stop = share(width, rank, tp, f"input columns of {hf}")
    size = (height, stop - start)
    return LocalTensor(name=name, shape=size, pieces=(Piece(hf, ((0, height), (start, stop)), whole(size)),))


def vocabulary(name: str, hf: str, shape: ModelShape, rows: Interval) -> LocalTensor:
    """A rank's `rows` of the padded vocabulary: those beyond the vocabulary are zeros."""
    size, width = shape.hf_shape(hf)
    start, stop = rows
    real = max(0, min(stop, size) - start)
    pieces = (Piece(hf, ((start, start + real), (0, width)), ((0, real), (0, width))),) if real else ()
    zeros: tuple[Box, ...] = (((real, stop - start), (0, width)),) if real < stop - start else ()
    return LocalTensor(name=name, shape=(stop - start, width), pieces=pieces, zeros=zeros)


def stacked(name: str, runs: Iterable[Run], shape: ModelShape) -> LocalTensor:
    """The runs' rows, one under the other."""
    pieces, at, tail = [], 0, ()  # type: tuple[list[Piece], int, tuple[int, ...]]
    for run in runs:
        tail = shape.hf_shape(run.hf)[1:]
        end = at + run.stop - run.start
        pieces.append(Piece(run.hf, ((run.start, run.stop), *whole(tail)), ((at, end), *whole(tail))))
        at = end
    return LocalTensor(name=name, shape=(at, *tail), pieces=tuple(pieces))


def window(runs: Iterable[Run], rows: Interval) -> Iterator[Run]:
    """What lies in these rows of the stack."""
    first, last, at = *rows, 0
    for run in runs:
        start, stop = max(first - at, 0), min(last - at, run.stop - run.start)
        if start < stop:
            yield Run(run.hf, run.start + start, run.start + stop)
        at += run.stop - run.start


def megatron_qkv(row: Row, shape: ModelShape, rank: int, tp: int) -> Iterator[Run]:
    """Each key-value head follows its query heads, and the stack is cut by rows.

    With fewer key-value heads than ranks a cut may go through a head: Megatron-Core gathers the activations again.
    """
    query, key, value = row.hf
    if shape.kv_heads % tp and tp % shape.kv_heads:
        raise LayoutError(
            f"{shape.kv_heads} key-value heads are neither a multiple nor a divisor of tp {tp}; choose tp accordingly."
        )
    share(shape.heads, rank, tp, "attention heads")
    size, queries = shape.head_dim, shape.heads // shape.kv_heads * shape.head_dim
    groups = (
        run
        for group in range(shape.kv_heads)
        for run in (
            Run(query, group * queries, (group + 1) * queries),
            Run(key, group * size, (group + 1) * size),
            Run(value, group * size, (group + 1) * size),
        )
    )
    fused = (shape.heads + 2 * shape.kv_heads) * size
    return window(groups, share(fused, rank, tp, "rows of query, key and value"))


def vllm_qkv(row: Row, shape: ModelShape, rank: int, tp: int) -> Iterator[Run]:
    """A rank's query, then key, then value heads; neighbours share a key-value head where there are too few."""
    heads, size = shape.kv_heads, shape.head_dim
    if heads % tp and tp % heads:
        raise LayoutError(
            f"{heads} key-value heads are neither a multiple nor a divisor of tp {tp}; choose tp accordingly."
        )
    first, last = share(shape.heads, rank, tp, "attention heads")
    start, stop = (
        share(heads, rank, tp, "key-value heads") if heads >= tp else (rank * heads // tp, rank * heads // tp + 1)
    )
    query, key, value = row.hf
    yield Run(query, first * size, last * size)
    yield Run(key, start * size, stop * size)
    yield Run(value, start * size, stop * size)


def gate_up(hf: tuple[str, ...], shape: ModelShape, rank: int, tp: int) -> Iterator[Run]:
    """A rank's gate rows, then its up rows."""
    for name in hf:
        start, stop = share(shape.hf_shape(name)[0], rank, tp, f"rows of {name}")
        yield Run(name, start, stop)


def numbered(names: tuple[str, ...], expert: int) -> tuple[str, ...]:
    """The names of one expert."""
    return tuple(name.replace("{expert}", str(expert)) for name in names)
