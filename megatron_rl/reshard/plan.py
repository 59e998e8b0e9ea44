"""The copies between two layouts: every target element once, from its own GPU where that has it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from megatron_rl.reshard.bundles import Bundle, Slice, SliceCopy, bundles
from megatron_rl.reshard.layout import Layout, LayoutError
from megatron_rl.reshard.placement import Placement, together

__all__ = ["ReshardPlan", "Slice", "SliceCopy", "Transfer", "plan", "plan_rank"]


class Transfer(NamedTuple):
    """Bundle `bundle` of the plan from rank `sender`, which has the bundle's `holders[holder]`, to rank `receiver`."""

    sender: int
    receiver: int
    bundle: int
    holder: int
    is_local: bool
    """Both ranks are on one GPU: copied or aliased there, never sent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReshardPlan:
    """Transfers in order of receiver; a transfer stands for the slice copies that `copies` spells out."""

    source: Layout
    target: Layout
    placement: Placement
    bundles: tuple[Bundle, ...]
    transfers: tuple[Transfer, ...]

    def copies(self, transfers: Sequence[Transfer] | None = None) -> Iterator[SliceCopy]:
        """The slice copies of these transfers, by default of all."""
        for sender, receiver, bundle, holder, _ in self.transfers if transfers is None else transfers:
            yield from self.bundles[bundle].copies(sender, receiver, holder)

    def outgoing(self, sender: int) -> tuple[Transfer, ...]:
        """What this source rank gives."""
        return self._by_sender.get(sender, ())

    def incoming(self, receiver: int) -> tuple[Transfer, ...]:
        """What this target rank takes."""
        return self._by_receiver.get(receiver, ())

    def elements(self, transfer: Transfer) -> int:
        """Elements that a transfer moves."""
        return self.bundles[transfer.bundle].elements

    @cached_property
    def wire_bytes(self) -> int:
        """Bytes that enter a GPU from another."""
        moved = sum(self.elements(transfer) for transfer in self.transfers if not transfer.is_local)
        return moved * self.target.shape.item_bytes

    @cached_property
    def local_bytes(self) -> int:
        """Bytes that are copied, or aliased, where they are."""
        kept = sum(self.elements(transfer) for transfer in self.transfers if transfer.is_local)
        return kept * self.target.shape.item_bytes

    @cached_property
    def sent_elements(self) -> tuple[int, ...]:
        """Elements that each source rank sends over a wire."""
        sent = [0] * len(self.source.ranks)
        for transfer in self.transfers:
            if not transfer.is_local:
                sent[transfer.sender] += self.elements(transfer)
        return tuple(sent)

    @cached_property
    def _by_sender(self) -> dict[int, tuple[Transfer, ...]]:
        return _grouped(self.transfers, 0)

    @cached_property
    def _by_receiver(self) -> dict[int, tuple[Transfer, ...]]:
        return _grouped(self.transfers, 1)


def plan(source: Layout, target: Layout, placement: Placement, receivers: Sequence[int] | None = None) -> ReshardPlan:
    """The transfers that fill these target ranks, all by default. The same layouts and placement give the same plan."""
    _check(source, target, placement)
    wanted = range(len(target.ranks)) if receivers is None else receivers
    made = bundles(source, target, sorted({target.ranks[receiver] for receiver in wanted}))
    by_shard: dict[int, list[int]] = defaultdict(list)
    for number, bundle in enumerate(made):
        by_shard[bundle.shard].append(number)
    here = _RanksByGpu(source, placement)
    local: list[Transfer] = []
    remote: list[tuple[int, int, int]] = []
    for receiver in wanted:
        for number in by_shard[target.ranks[receiver]]:
            bundle = made[number]
            found = here.find(placement.target[receiver], bundle.holders)
            if found is None:
                remote.append((-bundle.elements, receiver, number))
            else:
                local.append(Transfer(found[0], receiver, number, found[1], True))
    sent = _deal(source, made, sorted(remote))
    _refuse_shared_gpus(placement, sent)
    return ReshardPlan(
        source=source,
        target=target,
        placement=placement,
        bundles=made,
        transfers=tuple(sorted(local + sent, key=lambda one: (one.receiver, one.bundle))),
    )


def plan_rank(source: Layout, target: Layout, receiver: int) -> ReshardPlan:
    """The copies that fill one target rank from a source that is all at hand: loading a checkpoint."""
    return plan(source, target, together(source, target), (receiver,))


class _RanksByGpu:
    """The source rank on a GPU that holds a shard, and its place among the holders of a bundle."""

    def __init__(self, source: Layout, placement: Placement) -> None:
        self._ranks: dict[int, dict[int, int]] = defaultdict(dict)
        for rank, gpu in enumerate(placement.source):
            self._ranks[gpu].setdefault(source.ranks[rank], rank)

    def find(self, gpu: int, holders: tuple[int, ...]) -> tuple[int, int] | None:
        held = self._ranks.get(gpu, {})
        for position, shard in enumerate(holders):
            if shard in held:
                return held[shard], position
        return None


def _deal(source: Layout, made: Sequence[Bundle], largest_first: list[tuple[int, int, int]]) -> list[Transfer]:
    """Each bundle from the rank that has sent least so far among all replicas of all its holders.

    A rank that sends to this receiver anyway is taken while it is at most the largest bundle ahead: fewer messages.
    """
    replicas: dict[int, list[int]] = defaultdict(list)
    for rank, shard in enumerate(source.ranks):
        replicas[shard].append(rank)
    candidates: dict[tuple[int, ...], list[int]] = {}
    load = [0] * len(source.ranks)
    largest = max((bundle.elements for bundle in made), default=0)
    paired: dict[int, list[int]] = defaultdict(list)
    sent = []
    for _, receiver, number in largest_first:
        bundle = made[number]
        if bundle.holders not in candidates:
            candidates[bundle.holders] = sorted(rank for shard in bundle.holders for rank in replicas[shard])
        own = candidates[bundle.holders]
        sender = min(own, key=load.__getitem__)
        near = [rank for rank in paired[receiver] if source.ranks[rank] in bundle.holders]
        if near and load[near[0]] <= load[sender] + largest:
            sender = near[0]
        else:
            paired[receiver].append(sender)
        load[sender] += bundle.elements
        sent.append(Transfer(sender, receiver, number, bundle.holders.index(source.ranks[sender]), False))
    return sent


def _check(source: Layout, target: Layout, placement: Placement) -> None:
    for what, layout, gpus in (("source", source, placement.source), ("target", target, placement.target)):
        if len(layout.ranks) != len(gpus):
            raise LayoutError(
                f"the placement names {len(gpus)} {what} GPUs, but {layout.label!r} has {len(layout.ranks)} ranks; "
                "place each of them."
            )


def _refuse_shared_gpus(placement: Placement, sent: list[Transfer]) -> None:
    """Two targets of a GPU could want one element twice, yet it should enter once: one of them may receive."""
    ranks: dict[int, int] = {}
    for transfer in sent:
        gpu = placement.target[transfer.receiver]
        if ranks.setdefault(gpu, transfer.receiver) != transfer.receiver:
            raise LayoutError(
                f"target ranks {ranks[gpu]} and {transfer.receiver} both receive on GPU {gpu}; give each its own."
            )


def _grouped(transfers: Sequence[Transfer], by: int) -> dict[int, tuple[Transfer, ...]]:
    groups: dict[int, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        groups[transfer[by]].append(transfer)
    return {rank: tuple(own) for rank, own in groups.items()}
