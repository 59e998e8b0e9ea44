"""Which GPU each rank runs on, and how the ranks of a rollout group are numbered."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_rl.reshard.bundles import Bundle, bundles
from megatron_rl.reshard.layout import Layout, LayoutError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The GPU of each source rank and of each target rank: Placement(source=(0, 1), target=(1, 0)) swaps two ranks."""

    source: tuple[int, ...]
    target: tuple[int, ...]

    def held(self, source: Layout) -> dict[int, tuple[int, ...]]:
        """The source shards on each GPU."""
        shards: dict[int, list[int]] = defaultdict(list)
        for rank, gpu in enumerate(self.source):
            if source.ranks[rank] not in shards[gpu]:
                shards[gpu].append(source.ranks[rank])
        return {gpu: tuple(own) for gpu, own in shards.items()}


def split(source: Layout, target: Layout) -> Placement:
    """Every rank on a GPU of its own, targets after sources."""
    sources, targets = len(source.ranks), len(target.ranks)
    return Placement(source=tuple(range(sources)), target=tuple(range(sources, sources + targets)))


def together(source: Layout, target: Layout) -> Placement:
    """Every rank in one place: loading, conversion and export, where nothing crosses a wire."""
    return Placement(source=(0,) * len(source.ranks), target=(0,) * len(target.ranks))


def colocated(source: Layout, target: Layout) -> Placement:
    """Source and target ranks on the same GPUs, the ranks of each group numbered so that most is already in place."""
    sources, group = tuple(range(len(source.ranks))), target.group
    held = Placement(source=sources, target=()).held(source)
    worth = _Worth(bundles(source, target))
    known: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    gpus: list[int] = []
    for first in range(0, len(target.ranks), group):
        shards = target.ranks[first : first + group]
        own = tuple(held.get(gpu, ()) for gpu in range(first, first + group))
        # Groups over replicas of the same shards are numbered alike.
        key = (shards, *own)
        if key not in known:
            known[key] = best([[worth(shard, there) for there in own] for shard in shards])
        gpus.extend(first + place for place in known[key])
    return Placement(source=sources, target=tuple(gpus))


class _Worth:
    """Elements of a target shard that a GPU with these source shards already has."""

    def __init__(self, needed: Sequence[Bundle]) -> None:
        self._needed: dict[int, list[Bundle]] = defaultdict(list)
        for bundle in needed:
            self._needed[bundle.shard].append(bundle)
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}

    def __call__(self, shard: int, held: tuple[int, ...]) -> int:
        key = (shard, held)
        if key not in self._known:
            there = set(held)
            self._known[key] = sum(
                bundle.elements for bundle in self._needed[shard] if not there.isdisjoint(bundle.holders)
            )
        return self._known[key]


def best(worth: list[list[int]]) -> list[int]:
    """For each row a column of its own, so that the chosen entries add up to the most; ties keep the diagonal.

    The Hungarian method with potentials, O(n^3): Kuhn, Naval Research Logistics 2 (1955).
    """
    n = len(worth)
    if any(len(row) != n for row in worth):
        raise LayoutError(f"a group of {n} ranks needs as many GPUs, but has {[len(row) for row in worth]}.")
    # One more than the ties can add up to weighs every element above them.
    cost = [[-(value * (n + 1) + (i == j)) for j, value in enumerate(row)] for i, row in enumerate(worth)]
    row_price, column_price, row_of = [0] * (n + 1), [0] * (n + 1), [n] * (n + 1)
    for row in range(n):
        row_of[n] = row
        column, previous, slack, done = n, [n] * n, [None] * n, set()  # type: int, list[int], list[int | None], set[int]
        while row_of[column] != n:
            done.add(column)
            current, step, following = row_of[column], None, n  # type: int, int | None, int
            for j in range(n):
                if j in done:
                    continue
                reduced = cost[current][j] - row_price[current] - column_price[j]
                known = slack[j]
                if known is None or reduced < known:
                    slack[j], previous[j], known = reduced, column, reduced
                if step is None or known < step:
                    step, following = known, j
            assert step is not None, "a square assignment always has a free column"
            for j in done:
                row_price[row_of[j]] += step
                column_price[j] -= step
            slack = [None if value is None else value - step for value in slack]
            column = following
        while column != n:
            row_of[column] = row_of[previous[column]]
            column = previous[column]
    chosen = [0] * n
    for column in range(n):
        chosen[row_of[column]] = column
    return chosen
