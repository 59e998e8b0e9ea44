"""What Megatron-Core allocates for weights, gradients and optimizer state, to the byte, from the sizes alone.

Its buffers hold the tensors in reverse order of registration, each at a multiple of 64 elements, and end at a multiple
of 128 and of the data ranks, among which the distributed optimizer shares them out. One chunk has one buffer, and a
second for experts that are dealt over ranks. With `optimizer.overlap` the first stage cuts its buffer into more
buckets, each of which may end in some more padding than is counted here. Under LoRA the buffers hold the changes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import lcm, prod
from typing import Final, NamedTuple

from megatron_rl.actor.lora import LoraSettings
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.recompute import KEEP_EVERYTHING
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

    def owned(self, rank: int) -> int:
        """Elements whose optimizer state this data rank keeps."""
        total = 0
        for start, stop in self.buckets:
            share = (stop - start) // self.ranks
            first, last = start + rank * share, start + (rank + 1) * share
            total += sum(max(0, min(end, last) - max(begin, first)) for begin, end in self.spans)
        return total


class _Sum(NamedTuple):
    """Elements of some tensors, bare and with the padding behind each."""

    elements: int
    padded: int


class Extent(NamedTuple):
    """A buffer by its sizes alone."""

    size: int
    elements: int
    most: int
    """Elements on the data rank that holds most of them."""

    @staticmethod
    def of(sums: Sequence[_Sum], shared: Sequence[int], ranks: int) -> Extent:
        multiple = lcm(ranks, BUCKET_MULTIPLE)
        size = _up(sum(one.padded for one in sums), multiple) + sum(_up(one, multiple) for one in shared)
        elements = sum(one.elements for one in sums) + sum(shared)
        return Extent(size, elements, min(elements, size // ranks))


class Static(NamedTuple):
    """Bytes that a rank holds whatever the batch: Static(parameters=..., gradients=..., optimizer=...)."""

    parameters: int
    gradients: int
    optimizer: int

    def __add__(self, other: object) -> Static:  # type: ignore[override]
        assert isinstance(other, Static), "bytes add up to bytes"
        return Static(*(one + two for one, two in zip(self, other, strict=True)))


def static(shape: ModelShape, actor: ActorSettings, stage: int, rank: int | None = None) -> Static:
    """Of a pipeline stage: on its `rank`-th rank in Megatron's order, tp fastest; by default on the fullest."""
    # What a search varies besides the cut changes nothing here, so it is kept out of what is remembered.
    return _static(shape, replace(actor, recompute=KEEP_EVERYTHING, update=UpdateSettings()), stage, rank)


@lru_cache(maxsize=4096)
def _static(shape: ModelShape, actor: ActorSettings, stage: int, rank: int | None) -> Static:
    total = Static(0, 0, 0)
    for position in range(stage, actor.pp * actor.vpp, actor.pp):
        if actor.lora is not None:
            total += Static(_item(actor) * sum(one.elements for one in weights(shape, actor, position)), 0, 0)
        if rank is None and actor.optimizer.distributed:
            for extent in extents(shape, actor, position):
                total += _bytes(actor, extent.size, extent.most)
            continue
        for buffer in buffers(shape, actor, position):
            own = buffer.elements
            if rank is not None and actor.optimizer.distributed:
                # Every so many ranks hold the same tensors, and share out their state in the order of their numbers.
                own = buffer.owned(rank * buffer.ranks // (actor.tp * actor.cp * actor.dp))
            total += _bytes(actor, buffer.size, own)
    return total


def extents(shape: ModelShape, actor: ActorSettings, position: int) -> Iterator[Extent]:
    """The sizes of the buffers of a chunk, without going through every expert of every layer."""
    replicas = actor.dp * actor.cp
    if actor.lora is not None:
        own = [one.elements for one in changes(shape, actor, actor.lora, position)]
        yield Extent.of([_Sum(one, _up(one, TENSOR_MULTIPLE)) for one in own], [], replicas)
        return
    chunks = actor.chunk_layers(shape.layers)
    first = sum(chunks[:position])
    ends = _ends(shape, actor, position)
    loose = [weight.elements for weight in ends if not weight.is_shared]
    layers = [
        _sums(shape, shape.is_sparse(layer), actor.tp, actor.ep) for layer in range(first, first + chunks[position])
    ]
    dense, dealt = [sums[0] for sums in layers], [sums[1] for sums in layers]
    shared = [weight.elements for weight in ends if weight.is_shared]
    yield Extent.of([*dense, *(_Sum(one, _up(one, TENSOR_MULTIPLE)) for one in loose)], shared, replicas)
    if any(one.elements for one in dealt):
        yield Extent.of(dealt, [], actor.tp * replicas // actor.ep)


def buffers(shape: ModelShape, actor: ActorSettings, position: int) -> Iterator[Buffer]:
    """Of the `position`-th chunk in model order; an expert buffer is shared by the ranks that hold the same experts."""
    learning = weights(shape, actor, position) if actor.lora is None else changes(shape, actor, actor.lora, position)
    every = tuple(learning)
    distributed = actor.optimizer.distributed
    replicas = actor.dp * actor.cp
    for is_dealt, ranks in ((False, replicas), (True, actor.tp * replicas // actor.ep)):
        own = [weight for weight in every if weight.is_dealt == is_dealt]
        if own:
            yield _laid(own, ranks) if distributed else _dense(own)


def weights(shape: ModelShape, actor: ActorSettings, position: int) -> Iterator[Weight]:
    """The parameters of a chunk in the order in which they are registered."""
    chunks = actor.chunk_layers(shape.layers)
    first = sum(chunks[:position])
    ends = list(_ends(shape, actor, position))
    before = ends[:1] if position == 0 else []
    yield from before
    for layer in range(first, first + chunks[position]):
        yield from _layer(shape, shape.is_sparse(layer), actor.tp, actor.ep)
    yield from ends[len(before) :]


def changes(shape: ModelShape, actor: ActorSettings, lora: LoraSettings, position: int) -> Iterator[Weight]:
    """The factors of LoRA that stand in a chunk."""
    chunks = actor.chunk_layers(shape.layers)
    first = sum(chunks[:position])
    for layer in range(first, first + chunks[position]):
        for row in shape.rows(layer):
            targets = [name for name in row.hf if name.split(".")[-2] in lora.targets and name.endswith(".weight")]
            if targets and "{expert}" not in row.local:
                outputs, inputs = sum(shape.hf_shape(name)[0] for name in row.hf), shape.hf_shape(row.hf[0])[1]
                outputs, inputs = (
                    (outputs, inputs // actor.tp) if row.cut is Cut.COLUMNS else (outputs // actor.tp, inputs)
                )
                yield Weight(len(targets) * lora.rank * inputs)
                yield Weight(outputs * lora.rank)


def _ends(shape: ModelShape, actor: ActorSettings, position: int) -> tuple[Weight, ...]:
    """Embedding, last norm and head, as far as the chunk has them."""
    chunks = actor.pp * actor.vpp
    rows = megatron_vocabulary(shape.vocabulary, actor.tp) // actor.tp
    vocabulary = Weight(rows * shape.hidden, is_shared=shape.tied and chunks > 1)
    is_first, is_last = position == 0, position == chunks - 1
    has_head = is_last and not (shape.tied and is_first)
    return (*[vocabulary] * is_first, *[Weight(shape.hidden)] * is_last, *[vocabulary] * has_head)


def _bytes(actor: ActorSettings, size: int, own: int) -> Static:
    """Of a buffer of this size, on a rank that keeps the state of `own` elements."""
    is_float32 = actor.precision.compute == "fp32"
    return Static(
        parameters=size * _item(actor),
        gradients=size * GRADIENT_BYTES,
        optimizer=own * (MOMENTS_BYTES + (0 if is_float32 else MAIN_BYTES)),
    )


def _item(actor: ActorSettings) -> int:
    return 4 if actor.precision.compute == "fp32" else 2


@lru_cache(maxsize=512)
def _sums(shape: ModelShape, is_sparse: bool, tp: int, ep: int) -> tuple[_Sum, _Sum]:
    """Of a layer, apart for what every rank of a stage holds and for experts that are dealt."""
    dense, dealt = (
        [one.elements for one in _layer(shape, is_sparse, tp, ep) if one.is_dealt == is_dealt]
        for is_dealt in (False, True)
    )
    return tuple(_Sum(sum(own), sum(_up(one, TENSOR_MULTIPLE) for one in own)) for own in (dense, dealt))  # type: ignore[return-value]


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
