"""Micro-batches as data: which rows are packed together on which data rank, planned from lengths alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_rl.actor.architecture import Architecture
from megatron_rl.ops.packing import Bin, imbalance, pack


class Cost(NamedTuple):
    """What a sequence of n tokens costs: linear × n + quadratic × n². Only the ratio of the two matters."""

    linear: float = 1.0
    quadratic: float = 0.0

    def of(self, length: int) -> float:
        return length * (self.linear + self.quadratic * length)


def cost_of(architecture: Architecture) -> Cost:
    """Multiplications per token in the matrices, and per pair of tokens in causal attention, of which half are seen."""
    shape = architecture.shape
    projections = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    active = architecture.routing.chosen * shape.expert_ffn if architecture.routing else shape.ffn
    layer = projections + 3 * shape.hidden * active
    return Cost(
        linear=float(shape.layers * layer + shape.hidden * shape.vocabulary),
        quadratic=float(shape.layers * shape.heads * shape.head_dim),
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What every plan must respect."""

    tokens: int
    """Most tokens in a micro-batch, padding included."""
    ranks: int = 1
    """Data ranks, each of which runs the same number of micro-batches."""
    rounds: int = 1
    """The number of micro-batches on a rank is a multiple of this: the stages of an interleaved pipeline."""
    token_multiple: int = 1
    """Tokens of a micro-batch are padded to a multiple of this."""
    cost: Cost = Cost()
    packed: bool = True
    """False gives every row a micro-batch of its own."""


@dataclass(frozen=True, kw_only=True)
class Microbatches:
    """For each data rank its micro-batches in order, each a tuple of row numbers.

    Rows of 4, 3, 2 and 1 tokens under Limits(tokens=5, ranks=2) give rows=(((0, 3),), ((1, 2),)).
    """

    rows: tuple[tuple[Bin, ...], ...]
    lengths: tuple[int, ...]
    limits: Limits

    def tokens(self, rows: Bin) -> int:
        return sum(self.lengths[row] for row in rows)

    def padding(self, rows: Bin) -> int:
        """Tokens to add so that the micro-batch divides over the ranks; an empty one needs something to compute."""
        multiple = self.limits.token_multiple
        return -self.tokens(rows) % multiple if rows else multiple

    @property
    def processed(self) -> int:
        """Tokens computed on all data ranks together."""
        return sum(self.tokens(rows) + self.padding(rows) for bins in self.rows for rows in bins)

    @property
    def imbalance(self) -> float:
        """How far the costliest data rank lies above the mean, as a share of the mean."""
        return imbalance(self.rows, [self.limits.cost.of(length) for length in self.lengths])


def plan(lengths: Sequence[int], limits: Limits) -> Microbatches:
    """The same micro-batches on every rank that asks."""
    virtual = limits.ranks * limits.rounds
    if limits.packed:
        budget = limits.tokens // limits.token_multiple * limits.token_multiple
        costs = [limits.cost.of(length) for length in lengths]
        bins = pack(lengths, budget=budget, ranks=virtual, costs=costs)
    else:
        bins = pack([1] * len(lengths), budget=1, ranks=virtual, costs=[limits.cost.of(length) for length in lengths])
    return Microbatches(rows=_join(bins, limits), lengths=tuple(lengths), limits=limits)


def _join(bins: tuple[tuple[Bin, ...], ...], limits: Limits) -> tuple[tuple[Bin, ...], ...]:
    """The bins of `rounds` equal shares on one rank, in turn, so that neighbours in time cost about the same."""
    shares = [bins[rank :: limits.ranks] for rank in range(limits.ranks)]
    return tuple(tuple(rows for turn in zip(*share, strict=True) for rows in turn) for share in shares)
