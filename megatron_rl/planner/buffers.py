"""What Megatron-Core allocates for weights, gradients and optimizer state, to the byte, from the sizes alone.

Its buffers hold the tensors in reverse order of registration, each at a multiple of 64 elements, and end at a multiple
of 128 and of the data ranks, among which the distributed optimizer shares them out. One chunk has one buffer, and a
second for experts that are dealt over ranks. With `optimizer.overlap` the first stage cuts its buffer into more
buckets, each of which may end in some more padding than is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import lcm, prod
from typing import Final, NamedTuple

from megatron_rl.actor.settings import ActorSettings
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.reshard.megatron import megatron_vocabulary
from megatron_rl.reshard.names import Cut, Row

TENSOR_MULTIPLE: Final = 64
BUCKET_MULTIPLE: Final = 128
GRADIENT_BYTES: Final = 4
MAIN_BYTES: Final = 4
MOMENTS_BYTES: Final = 8

REGISTERED: Final = (
    *("input_layernorm", "linear_proj", "linear_qkv.weight", "linear_qkv.bias", "q_layernorm", "k_layernorm"),
    *("pre_mlp_layernorm", "mlp.linear_fc1", "mlp.linear_fc2", "router", "experts"),
)
"""The tensors of a layer in the order in which Megatron-Core registers them."""


class Weight(NamedTuple):
    """A parameter of a rank."""

    elements: int
    is_dealt: bool = False
    """Whether it belongs to an expert that only some ranks hold."""
    is_shared: bool = False
    """Whether two pipeline stages hold it: it gets a bucket of its own."""


class Buffer(NamedTuple):
    """Where tensors lie in a buffer that `ranks` share: Buffer(spans=((0, 64),), buckets=((0, 128),), ranks=2)."""

    spans: tuple[tuple[int, int], ...]
    buckets: tuple[tuple[int, int], ...]
    ranks: int

    @property
    def size(self) -> int:
        return self.buckets[-1][1] if self.buckets else 0

    @property
    def elements(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    @property
    def most(self) -> int:
        """Elements on the data rank that holds most of them."""
        return min(self.elements, self.size // self.ranks)

    def owned(self, rank: int) -> int:
        """Elements whose optimizer state this data rank keeps."""
        total = 0
        for start, stop in self.buckets:
            share = (stop - start) // self.ranks
            first, last = start + rank * share, start + (rank + 1) * share
            total += sum(max(0, min(end, last) - max(begin, first)) for begin, end in self.spans)
        return total


class Static(NamedTuple):
    """Bytes that a rank holds whatever the batch: Static(parameters=..., gradients=..., optimizer=...)."""

    parameters: int
    gradients: int
    optimizer: int

    def __add__(self, other: object) -> Static:  # type: ignore[override]
        assert isinstance(other, Static), "bytes add up to bytes"
        return Static(*(one + two for one, two in zip(self, other, strict=True)))


def static(shape: ModelShape, actor: ActorSettings, stage: int, rank: int | None = None) -> Static:
    """Of a pipeline stage, on data rank `rank`, by default on the fullest; the same on all its tensor ranks."""
    total = Static(0, 0, 0)
    for chunk in range(actor.vpp):
        for buffer in buffers(shape, actor, chunk * actor.pp + stage):
            total += _bytes(buffer, actor, rank)
    return total


def buffers(shape: ModelShape, actor: ActorSettings, position: int) -> Iterator[Buffer]:
    """Of the `position`-th chunk in model order; an expert buffer is shared by the ranks that hold the same experts."""
    every = tuple(weights(shape, actor, position))
    distributed = actor.optimizer.distributed
    replicas = actor.dp * actor.cp
    for is_dealt, ranks in ((False, replicas), (True, actor.tp * replicas // actor.ep)):
        own = [weight for weight in every if weight.is_dealt == is_dealt]
        if own:
            yield _laid(own, ranks) if distributed else _dense(own)


def weights(shape: ModelShape, actor: ActorSettings, position: int) -> Iterator[Weight]:
    """The parameters of a chunk in the order in which they are registered."""
    chunks = actor.chunk_layers(shape.layers)
    first, is_first, is_last = sum(chunks[:position]), position == 0, position == len(chunks) - 1
    rows = megatron_vocabulary(shape.vocabulary, actor.tp) // actor.tp
    is_shared = shape.tied and len(chunks) > 1
    if is_first:
        yield Weight(rows * shape.hidden, is_shared=is_shared)
    for layer in range(first, first + chunks[position]):
        yield from _layer(shape, shape.is_sparse(layer), actor.tp, actor.ep)
    if is_last:
        yield Weight(shape.hidden)
    if is_last and not (shape.tied and is_first):
        yield Weight(rows * shape.hidden, is_shared=is_shared)


def _bytes(buffer: Buffer, actor: ActorSettings, rank: int | None) -> Static:
    is_float32 = actor.precision.compute == "fp32"
    own = buffer.elements
    if actor.optimizer.distributed:
        own = buffer.most if rank is None else buffer.owned(rank)
    return Static(
        parameters=buffer.size * (4 if is_float32 else 2),
        gradients=buffer.size * GRADIENT_BYTES,
        optimizer=own * (MOMENTS_BYTES + (0 if is_float32 else MAIN_BYTES)),
    )


@lru_cache(maxsize=512)
def _layer(shape: ModelShape, is_sparse: bool, tp: int, ep: int) -> tuple[Weight, ...]:
    table = shape.rows(next(layer for layer in range(shape.layers) if shape.is_sparse(layer) == is_sparse))
    rows = sorted(table, key=lambda row: next(n for n, part in enumerate(REGISTERED) if part in row.local))
    plain = [Weight(_elements(shape, row, tp)) for row in rows if "{expert}" not in row.local]
    # Experts that are dealt over ranks are whole on each; otherwise they are cut like every other tensor.
    dealt = [
        Weight(_elements(shape, row, 1 if ep > 1 else tp), is_dealt=ep > 1) for row in rows if "{expert}" in row.local
    ]
    return (*plain, *dealt * (shape.experts // ep))


def _elements(shape: ModelShape, row: Row, tp: int) -> int:
    whole = sum(prod(shape.hf_shape(name)) for name in row.hf)
    return whole if row.cut is Cut.WHOLE else whole // tp


def _laid(own: Sequence[Weight], ranks: int) -> Buffer:
    spans: list[tuple[int, int]] = []
    buckets: list[tuple[int, int]] = []
    begun = at = 0
    multiple = lcm(ranks, BUCKET_MULTIPLE)

    def closed(end: int) -> int:
        nonlocal begun
        buckets.append((begun, _up(end, multiple)))
        begun = buckets[-1][1]
        return begun

    for weight in reversed(own):
        at = _up(at, TENSOR_MULTIPLE)
        if weight.is_shared and at > begun:
            at = closed(spans[-1][1])
        spans.append((at, at + weight.elements))
        at += weight.elements
        if weight.is_shared:
            at = closed(at)
    if at > begun:
        closed(at)
    return Buffer(tuple(spans), tuple(buckets), ranks)


def _dense(own: Sequence[Weight]) -> Buffer:
    """Tensor after tensor, all of it on every data rank."""
    total = sum(weight.elements for weight in own)
    return Buffer(((0, total),), ((0, total),), 1)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
