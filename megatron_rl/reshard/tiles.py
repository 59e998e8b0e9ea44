"""Where the boxes of a target template lie in source templates, cut into tiles that each holder has in one piece.

A `Tiling` gathers the tiles that the same source templates hold, so a sender is chosen once for all of them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

from megatron_rl.reshard.layout import Box, LayoutError, LocalTensor, Piece, volume


class Spot(NamedTuple):
    """A box of a local tensor, named as its template names it."""

    name: str
    box: Box


class Tile(NamedTuple):
    """A box of a target tensor, and the box that holds the same elements in each of the tiling's holders."""

    target: Spot
    sources: tuple[Spot, ...]
    elements: int


class Tiling(NamedTuple):
    """Tiles that exactly the source templates at these positions hold."""

    holders: tuple[int, ...]
    tiles: tuple[Tile, ...]
    elements: int


class _Held(NamedTuple):
    position: int
    tensor: str
    piece: Piece


Index = dict[str, list[_Held]]
"""Who holds what of each Hugging Face tensor."""


def index(sources: Sequence[Sequence[LocalTensor]]) -> Index:
    """The pieces of these source templates by Hugging Face name."""
    held: Index = defaultdict(list)
    for position, template in enumerate(sources):
        for tensor in template:
            for piece in tensor.pieces:
                held[piece.name].append(_Held(position, tensor.name, piece))
    return held


def tilings(target: Sequence[LocalTensor], held: Index) -> tuple[Tiling, ...]:
    """The target template's pieces as tiles, gathered by holders."""
    gathered: dict[tuple[int, ...], list[Tile]] = defaultdict(list)
    for tensor in target:
        for piece in tensor.pieces:
            for cell, holders in _cells(piece, held.get(piece.name, [])):
                tile = Tile(
                    target=Spot(tensor.name, local(piece, cell)),
                    sources=tuple(Spot(tensor_name, local(own, cell)) for _, tensor_name, own in holders),
                    elements=volume(cell),
                )
                gathered[tuple(position for position, _, _ in holders)].append(tile)
    return tuple(
        Tiling(holders, tuple(tiles), sum(tile.elements for tile in tiles)) for holders, tiles in gathered.items()
    )


def local(piece: Piece, cell: Box) -> Box:
    """Where a box inside the piece's box lies in the local tensor."""
    stacked = len(piece.at) - len(piece.box)
    inner = tuple(
        (at + start - origin, at + stop - origin)
        for (start, stop), (origin, _), (at, _) in zip(cell, piece.box, piece.at[stacked:], strict=True)
    )
    return piece.at[:stacked] + inner


def _cells(wanted: Piece, held: list[_Held]) -> Iterator[tuple[Box, list[_Held]]]:
    """The wanted box cut at the edges of every box that meets it, each cell with one piece of each of its holders."""
    meeting = [one for one in held if _meet(one.piece.box, wanted.box)]
    for cell in _grid(wanted.box, [one.piece.box for one in meeting]):
        holders: dict[int, _Held] = {}
        for one in meeting:
            if _inside(cell, one.piece.box):
                holders.setdefault(one.position, one)
        if not holders:
            raise LayoutError(
                f"no source rank holds {cell} of {wanted.name}, which the target needs; "
                "plan from a source that holds the whole model."
            )
        yield cell, list(holders.values())


def _meet(one: Box, other: Box) -> bool:
    return all(start < end and begin < stop for (start, stop), (begin, end) in zip(one, other, strict=True))


def _inside(cell: Box, box: Box) -> bool:
    return all(start <= begin and end <= stop for (begin, end), (start, stop) in zip(cell, box, strict=True))


def _grid(box: Box, others: list[Box]) -> Iterator[Box]:
    axes = []
    for axis, (start, stop) in enumerate(box):
        inner = {edge for other in others for edge in other[axis] if start < edge < stop}
        edges = [start, *sorted(inner), stop]
        axes.append(list(pairwise(edges)))
    return product(*axes)
