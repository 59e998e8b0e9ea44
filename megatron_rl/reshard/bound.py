"""The fewest bytes that must cross a wire, found by counting elements and knowing nothing of plans.

A GPU needs the elements of its target ranks and has those of its source ranks; each of the others must enter it once.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable

import numpy as np

from megatron_rl.reshard.layout import Box, Layout, Shard
from megatron_rl.reshard.placement import Placement

Boxes = dict[str, list[Box]]
"""Boxes of Hugging Face tensors, by name."""


def wire_bound(source: Layout, target: Layout, placement: Placement) -> int:
    """Bytes that must enter some GPU from another, whoever sends them."""
    return sum(missing_by_gpu(source, target, placement).values()) * target.shape.item_bytes


def gather_bytes(source: Layout, target: Layout, placement: Placement) -> int:
    """Bytes that enter the target's GPUs where each gathers whole tensors, all that it has not, and slices them."""
    counter = _Counter(source, target)
    held = _on_gpus(source, placement.source)
    everything = _count(_boxes([*target.shards]))
    gpus = dict.fromkeys(placement.target)
    return sum(everything - counter.held(held.get(gpu, ())) for gpu in gpus) * target.shape.item_bytes


def missing_by_gpu(
    source: Layout, target: Layout, placement: Placement, gpus: Collection[int] | None = None
) -> dict[int, int]:
    """Elements that each of these GPUs, by default every one of the target's, needs and does not have."""
    counter = _Counter(source, target)
    held, needed = _on_gpus(source, placement.source), _on_gpus(target, placement.target)
    return {
        gpu: counter.missing(shards, held.get(gpu, ())) for gpu, shards in needed.items() if gpus is None or gpu in gpus
    }


class _Counter:
    """Counts once for all GPUs that need and hold the same shards."""

    def __init__(self, source: Layout, target: Layout) -> None:
        self.source, self.target = source, target
        self._needed: dict[tuple[int, ...], tuple[Boxes, int]] = {}
        self._held: dict[tuple[int, ...], Boxes] = {}
        self._missing: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    def missing(self, needed: tuple[int, ...], held: tuple[int, ...]) -> int:
        if (needed, held) not in self._missing:
            boxes, total = self._needs(needed)
            there = self._holds(held)
            both = sum(covered(boxes[name], there[name]) for name in there if name in boxes)
            self._missing[needed, held] = total - both
        return self._missing[needed, held]

    def held(self, shards: tuple[int, ...]) -> int:
        return _count(self._holds(shards))

    def _needs(self, shards: tuple[int, ...]) -> tuple[Boxes, int]:
        if shards not in self._needed:
            boxes = _boxes(self.target.shards[shard] for shard in shards)
            self._needed[shards] = (boxes, _count(boxes))
        return self._needed[shards]

    def _holds(self, shards: tuple[int, ...]) -> Boxes:
        if shards not in self._held:
            self._held[shards] = _boxes(self.source.shards[shard] for shard in shards)
        return self._held[shards]


def covered(boxes: list[Box], others: list[Box] | None = None) -> int:
    """Elements in at least one of `boxes` and, where given, in at least one of `others`."""
    both = boxes if others is None else boxes + others
    edges = [np.unique([edge for box in both for edge in box[axis]]) for axis in range(len(boxes[0]))]
    inside = _painted(boxes, edges)
    if others is not None:
        inside &= _painted(others, edges)
    sizes = np.ones(inside.shape, dtype=np.int64)
    for axis, edge in enumerate(edges):
        sizes *= np.diff(edge).reshape([-1 if axis == other else 1 for other in range(len(edges))])
    return int(sizes[inside].sum())


def _painted(boxes: list[Box], edges: list[np.ndarray]) -> np.ndarray:
    """The cells between the edges that some box covers."""
    cells = np.zeros([len(edge) - 1 for edge in edges], dtype=bool)
    for box in boxes:
        corner = (np.searchsorted(edge, interval) for edge, interval in zip(edges, box, strict=True))
        cells[tuple(slice(start, stop) for start, stop in corner)] = True
    return cells


def _count(boxes: Boxes) -> int:
    return sum(covered(own) for own in boxes.values())


def _boxes(shards: Iterable[Shard]) -> Boxes:
    boxes: Boxes = defaultdict(list)
    for shard in shards:
        for tensor in shard.tensors():
            for piece in tensor.pieces:
                boxes[piece.name].append(piece.box)
    return dict(boxes)


def _on_gpus(layout: Layout, gpus: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    shards: dict[int, set[int]] = defaultdict(set)
    for rank, gpu in enumerate(gpus):
        shards[gpu].add(layout.ranks[rank])
    return {gpu: tuple(sorted(own)) for gpu, own in shards.items()}
