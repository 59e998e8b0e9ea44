"""What a target shard needs, gathered by the source shards that hold it: everything a plan decides about at once."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megatron_rl.reshard.layout import Block, Box, Key, Layout, LayoutError
from megatron_rl.reshard.tiles import Index, Spot, Tiling, index, tilings


class Slice(NamedTuple):
    """A box of a local tensor of a rank."""

    key: Key
    box: Box


class SliceCopy(NamedTuple):
    """One copy: `elements` from a box of the sender's tensor to a box of the receiver's."""

    sender: int
    receiver: int
    source: Slice
    target: Slice
    elements: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The tiles of one target block, and the block that each holder has them in."""

    tiling: Tiling
    target: Block
    sources: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """Elements of target shard `shard` that each of the source shards `holders` has, and no other source shard."""

    shard: int
    holders: tuple[int, ...]
    parts: tuple[Part, ...]
    elements: int

    def copies(self, sender: int, receiver: int, holder: int) -> Iterator[SliceCopy]:
        """The copies by which rank `sender`, which has shard `holders[holder]`, gives it all to rank `receiver`."""
        for part in self.parts:
            for tile in part.tiling.tiles:
                yield SliceCopy(
                    sender=sender,
                    receiver=receiver,
                    source=_slice(part.sources[holder], tile.sources[holder]),
                    target=_slice(part.target, tile.target),
                    elements=tile.elements,
                )


def bundles(source: Layout, target: Layout, shards: Iterable[int] | None = None) -> tuple[Bundle, ...]:
    """The bundles of these target shards, all by default, in the order of shards and then of first need."""
    if source.shape != target.shape:
        raise LayoutError(f"the source is laid out for {source.shape}, the target for {target.shape}; use one model.")
    held = _blocks_by_prefix(source)
    tiled = _Tiled()
    made: list[Bundle] = []
    for shard in range(len(target.shards)) if shards is None else shards:
        parts: dict[tuple[int, ...], list[Part]] = defaultdict(list)
        for block in target.shards[shard].blocks:
            owners = held.get(block.hf_prefix, [])
            for tiling in tiled(block, owners):
                own = [owners[position] for position in tiling.holders]
                part = Part(tiling=tiling, target=block, sources=tuple(owner.block for owner in own))
                parts[tuple(owner.shard for owner in own)].append(part)
        made.extend(
            Bundle(shard=shard, holders=holders, parts=tuple(some), elements=sum(part.tiling.elements for part in some))
            for holders, some in parts.items()
        )
    return tuple(made)


class _Owner(NamedTuple):
    shard: int
    block: Block


class _Tiled:
    """Tilings, computed once for blocks of equal templates: layers differ in nothing but their number."""

    def __init__(self) -> None:
        self._indices: dict[tuple[int, ...], Index] = {}
        self._tilings: dict[tuple[int, tuple[int, ...]], tuple[Tiling, ...]] = {}

    def __call__(self, block: Block, owners: list[_Owner]) -> tuple[Tiling, ...]:
        # Templates live as long as their layouts, so their identity is a key; it orders nothing.
        sources = tuple(id(owner.block.template) for owner in owners)
        key = (id(block.template), sources)
        if key not in self._tilings:
            if sources not in self._indices:
                self._indices[sources] = index([owner.block.template for owner in owners])
            self._tilings[key] = tilings(block.template, self._indices[sources])
        return self._tilings[key]


def _blocks_by_prefix(source: Layout) -> dict[str, list[_Owner]]:
    held: dict[str, list[_Owner]] = defaultdict(list)
    for number, shard in enumerate(source.shards):
        for block in shard.blocks:
            held[block.hf_prefix].append(_Owner(number, block))
    return held


def _slice(block: Block, spot: Spot) -> Slice:
    return Slice(key=Key(block.chunk, block.local_prefix + spot.name), box=spot.box)
