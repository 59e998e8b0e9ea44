"""The copies of a plan as messages: for each pair of ranks a few large buckets, in one order that both sides follow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megatron_rl.reshard.bundles import Slice, SliceCopy
from megatron_rl.reshard.layout import Box
from megatron_rl.reshard.plan import ReshardPlan


class Pair(NamedTuple):
    """A source rank and a target rank."""

    sender: int
    receiver: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Bucket `number` of `count` that go from a sender to a receiver: these copies' elements, one after the other."""

    pair: Pair
    number: int
    count: int
    copies: tuple[SliceCopy, ...]
    elements: int


def schedule(plan: ReshardPlan, pairs: Iterable[Pair], most: int) -> tuple[Bucket, ...]:
    """The buckets of these pairs, of at most `most` elements, in the order in which both ends must handle them.

    The order is total, so no ring of ranks can wait for one another; and at each step it matches senders and
    receivers one to one, so no receiver has all senders waiting for it.
    """
    made = [bucket for pair in pairs for bucket in _buckets(plan, pair, most)]
    return tuple(sorted(made, key=lambda one: _turn(one, len(plan.target.ranks))))


def pairs_of(plan: ReshardPlan, senders: Iterable[int], receivers: Iterable[int]) -> tuple[Pair, ...]:
    """Every pair in which one of these source or target ranks takes part."""
    outgoing = (transfer for sender in senders for transfer in plan.outgoing(sender))
    incoming = (transfer for receiver in receivers for transfer in plan.incoming(receiver))
    return tuple(sorted({Pair(one.sender, one.receiver) for some in (outgoing, incoming) for one in some}))


def _turn(bucket: Bucket, receivers: int) -> tuple[int, int, int, int]:
    sender, receiver = bucket.pair
    return bucket.number, (receiver - sender) % receivers, sender, receiver


def _buckets(plan: ReshardPlan, pair: Pair, most: int) -> list[Bucket]:
    transfers = [transfer for transfer in plan.incoming(pair.receiver) if transfer.sender == pair.sender]
    groups: list[list[SliceCopy]] = [[]]
    room = most
    for copy in plan.copies(transfers):
        for part in _at_most(copy, most):
            if part.elements > room:
                groups.append([])
                room = most
            groups[-1].append(part)
            room -= part.elements
    return [
        Bucket(
            pair=pair,
            number=number,
            count=len(groups),
            copies=tuple(copies),
            elements=sum(copy.elements for copy in copies),
        )
        for number, copies in enumerate(groups)
    ]


def _at_most(copy: SliceCopy, most: int) -> Iterator[SliceCopy]:
    """The copy in parts of at most `most` elements, cut along its first axis that can be cut."""
    if copy.elements <= most:
        yield copy
        return
    axis = next(axis for axis, (start, stop) in enumerate(copy.target.box) if stop - start > 1)
    start, stop = copy.target.box[axis]
    # Aligned at the last axis: a stacked tensor has leading axes that the other side lacks.
    other = axis - len(copy.target.box) + len(copy.source.box)
    each = copy.elements // (stop - start)
    step = max(1, most // each)
    for first in range(0, stop - start, step):
        last = min(first + step, stop - start)
        part = copy._replace(
            source=_cut(copy.source, other, first, last),
            target=_cut(copy.target, axis, first, last),
            elements=each * (last - first),
        )
        yield from _at_most(part, most)


def _cut(whole: Slice, axis: int, first: int, last: int) -> Slice:
    box = list(whole.box)
    origin = box[axis][0]
    box[axis] = (origin + first, origin + last)
    cut: Box = tuple(box)
    return whole._replace(box=cut)
