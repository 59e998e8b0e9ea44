"""Token batches for objectives, whole and in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megatron_rl.batch.columns import Column
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.segments import row_sum
from megatron_rl.ports import Counts, Objective, Priced, Tokens


def tokens_of(
    lengths: Sequence[int], logprobs_T: Tensor, mask_T: Tensor, columns: Mapping[Column, Tensor], entropy_T: Tensor
) -> Tokens:
    rows = Ragged.from_lengths(logprobs_T, torch.tensor(lengths, dtype=torch.int64))
    return Tokens(
        logprobs_T=logprobs_T,
        entropy_T=entropy_T,
        mask_T=mask_T,
        row_T=rows.row_T,
        offsets=rows.offsets,
        columns={column.name: values for column, values in columns.items()},
    )


def random_tokens(objective: Objective, lengths: Sequence[int] = (3, 1, 6, 0, 4), seed: int = 0) -> Tokens:
    """Every column the objective reads; about a quarter of the tokens masked, and one row wholly."""
    draw = torch.Generator().manual_seed(seed)
    T, B = sum(lengths), len(lengths)

    def near_zero(size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64) / 2

    mask_T = (torch.rand(T, generator=draw) > 0.25).to(torch.uint8)
    mask_T[: lengths[0]] = 0
    columns = {column: near_zero(T if column.is_ragged else B) for column in objective.reads}
    columns |= {column: torch.ones(B, dtype=torch.int64) for column in objective.reads if column.name == "reused"}
    columns |= {column: torch.arange(B) // 2 for column in objective.reads if column.name == "group"}
    return tokens_of(lengths, near_zero(T).requires_grad_(), mask_T, columns, near_zero(T).abs())


def counts_of(tokens: Tokens, groups: int = 1) -> Counts:
    live_T = tokens.mask_T.bool().long()
    rows = int((row_sum(live_T, tokens.offsets) > 0).sum())
    return Counts(tokens=int(live_T.sum()), rows=rows, groups=groups)


def part(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    """The tokens of some rows, as a micro-batch would hold them."""
    index_B = torch.tensor(rows, dtype=torch.int64)

    def take(values_T: Tensor) -> Tensor:
        return Ragged(values_T, tokens.offsets).take(index_B).values

    kept = Ragged(tokens.logprobs_T, tokens.offsets).take(index_B)
    T = len(tokens.logprobs_T)
    return Tokens(
        logprobs_T=kept.values,
        entropy_T=None if tokens.entropy_T is None else take(tokens.entropy_T),
        mask_T=take(tokens.mask_T),
        row_T=kept.row_T,
        offsets=kept.offsets,
        columns={
            name: take(values) if len(values) == T else values[index_B] for name, values in tokens.columns.items()
        },
    )


def slope(objective: Objective, tokens: Tokens, counts: Counts) -> tuple[Priced, Tensor]:
    """The price and its gradient in the log-probabilities."""
    priced = objective.price(tokens, counts)
    (gradient_T,) = torch.autograd.grad(priced.loss, tokens.logprobs_T)
    return Priced(loss=priced.loss.detach(), metrics=priced.metrics), gradient_T
