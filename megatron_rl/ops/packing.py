"""Rows into micro-batches under a token budget, the same number on every data rank, at nearly equal cost.

Plain numbers in, plain numbers out: the same answer on every rank that asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import ceil

Bin = tuple[int, ...]
"""Row numbers of one micro-batch."""

GOOD_ENOUGH = 0.005
"""Imbalance at which moving rows between ranks stops."""


def pack(
    lengths: Sequence[int], *, budget: int, ranks: int, costs: Sequence[float] | None = None
) -> tuple[tuple[Bin, ...], ...]:
    """For each rank its bins, costliest first so that ranks in lockstep wait little; `costs` defaults to the lengths.

    pack([4, 3, 2, 1], budget=5, ranks=2) gives (((0, 3),), ((1, 2),)). A bin is empty only where
    rows are fewer than bins.
    """
    costs = lengths if costs is None else costs
    _check(lengths, costs, budget, ranks)
    count = ranks * max(1, ceil(sum(lengths) / (budget * ranks)))
    bins = _fill(lengths, costs, budget, count)
    while bins is None:
        count += ranks
        bins = _fill(lengths, costs, budget, count)
    return _level(_deal(bins, costs, ranks), lengths, costs, budget)


def imbalance(packed: Sequence[Sequence[Bin]], costs: Sequence[float]) -> float:
    """How far the costliest rank lies above the mean rank, as a share of the mean."""
    load = [sum(costs[row] for rows in bins for row in rows) for bins in packed]
    return max(load) * len(load) / sum(load) - 1 if sum(load) else 0.0


def _check(lengths: Sequence[int], costs: Sequence[float], budget: int, ranks: int) -> None:
    if len(costs) != len(lengths):
        raise ValueError(f"packing needs one cost per row, got {len(costs)} costs for {len(lengths)} rows")
    if ranks < 1:
        raise ValueError(f"packing needs at least one rank, got {ranks}")
    longest = max(lengths, default=0)
    if longest > budget:
        row = list(lengths).index(longest)
        raise ValueError(
            f"row {row} has {longest} tokens and fits no bin of {budget}; raise the token budget or cut the row"
        )


def _fill(lengths: Sequence[int], costs: Sequence[float], budget: int, count: int) -> list[Bin] | None:
    """Costliest row first, each into the cheapest bin with room; None if some row finds none."""
    order = sorted(range(len(lengths)), key=lambda row: (-costs[row], -lengths[row], row))
    rows: list[list[int]] = [[] for _ in range(count)]
    room = [budget] * count
    heap = [(0.0, number) for number in range(count)]
    for row in order:
        passed: list[tuple[float, int]] = []
        while heap and room[heap[0][1]] < lengths[row]:
            passed.append(heappop(heap))
        if not heap:
            return None
        cost, number = heappop(heap)
        rows[number].append(row)
        room[number] -= lengths[row]
        passed.append((cost + costs[row], number))
        for entry in passed:
            heappush(heap, entry)
    return [tuple(members) for members in rows]


def _deal(bins: list[Bin], costs: Sequence[float], ranks: int) -> list[list[list[int]]]:
    """Costliest bin first, each to the cheapest rank that still lacks one."""
    weight = {number: _cost(rows, costs) for number, rows in enumerate(bins)}
    dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    heapify(heap)
    for number in sorted(weight, key=lambda number: (-weight[number], number)):
        load, rank = heappop(heap)
        dealt[rank].append(list(bins[number]))
        if len(dealt[rank]) < len(bins) // ranks:
            heappush(heap, (load + weight[number], rank))
    return dealt


def _level(
    dealt: list[list[list[int]]], lengths: Sequence[int], costs: Sequence[float], budget: int
) -> tuple[tuple[Bin, ...], ...]:
    """Rows moved one by one from the costliest rank to cheaper ones, where a giant row made whole bins too coarse."""
    load = [sum(_cost(rows, costs) for rows in bins) for bins in dealt]
    mean = sum(load) / len(load)
    moved = True
    while moved and max(load) > (1 + GOOD_ENOUGH) * mean:
        heavy = load.index(max(load))
        for light in sorted(range(len(load)), key=lambda rank: (load[rank], rank)):
            row = _best_move(dealt[heavy], dealt[light], load[heavy] - load[light], (lengths, costs, budget))
            if moved := row is not None:
                load[heavy] -= costs[row]
                load[light] += costs[row]
                break
    return tuple(
        tuple(tuple(rows) for rows in sorted(bins, key=lambda rows: (-_cost(rows, costs), rows))) for bins in dealt
    )


def _best_move(
    giver: list[list[int]], taker: list[list[int]], gap: float, sizes: tuple[Sequence[int], Sequence[float], int]
) -> int | None:
    """The row that was moved: the one nearest to closing the gap, into the roomiest bin; None if none helps."""
    lengths, costs, budget = sizes
    roomiest = min(taker, key=lambda rows: sum(lengths[row] for row in rows))
    room = budget - sum(lengths[row] for row in roomiest)
    fitting = [
        (abs(gap / 2 - costs[row]), row, rows)
        for rows in giver
        if len(rows) > 1
        for row in rows
        if lengths[row] <= room and 0 < costs[row] < gap
    ]
    if not fitting:
        return None
    _, row, rows = min(fitting)
    rows.remove(row)
    roomiest.append(row)
    return row


def _cost(rows: Sequence[int], costs: Sequence[float]) -> float:
    return sum(costs[row] for row in rows)
