"""A batch as packed sequences: prompt and response end to end, next tokens as targets, columns beside the responses.

T packed tokens, B rows, R response tokens. The last token of a sequence predicts nothing, so it is not computed. Where
context ranks share a packing, T of its tokens are on this rank, and S of the response tokens are predicted from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.actor.attention import Packing, packing
from megatron_rl.actor.context import ALONE, Context
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, LOSS_MASK, PROMPT_TOKENS, TOKENS, Column
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.logprobs import response_predictors
from megatron_rl.ops.segments import positions, row_ids, row_sum, to_offsets
from megatron_rl.ports import Counts


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One micro-batch on the device: T packed tokens of B rows, S of them predict S of the R response tokens.

    Rows [5, 9 | 2, 7] and [5 | 1] have tokens [5, 9, 2, 5], predictors [1, 2, 3] and targets [2, 7, 1]. The second of
    two context ranks holds tokens 1 and 2 of each, filled up to four: [9, 2, 0, 0], of which [0, 1] predict [2, 7].
    """

    rows: Tensor
    """Row numbers in the batch, on the host."""
    tokens_1T: Tensor
    sequences: Packing
    predictor_S: Tensor
    target_S: Tensor
    here_S: Tensor
    """Which of the R response tokens these are: all in turn, but where context ranks share the packing."""
    mask_R: Tensor
    row_R: Tensor
    offsets: Tensor
    columns: dict[str, Tensor]


class Sequences:
    """The rows of a batch that have a response, ready to be packed in any combination."""

    def __init__(self, batch: Batch, reads: Sequence[Column] = (), context: Context = ALONE) -> None:
        self.context = context
        self.prompts, self.responses = batch.ragged(PROMPT_TOKENS), batch.ragged(TOKENS)
        self.lengths: list[int] = (self.prompts.length_B + self.responses.length_B - 1).tolist()
        self.mask = _mask(batch, self.responses)
        self.group_B = batch.group_index() if GROUP in batch else torch.arange(len(batch))
        self.tokens = {column.name: batch.ragged(column) for column in reads if column.is_ragged}
        self.numbers = {column.name: batch.numbers(column) for column in reads if not column.is_ragged}

    def spoken(self, rows: Tensor) -> list[int]:
        """Those of the rows that have a response."""
        return [row for row in rows.tolist() if int(self.responses.length_B[row])]

    def room(self, rows: Sequence[int]) -> int:
        """Tokens that these rows take in a packing, with what makes each divide over the context ranks."""
        return sum(self.lengths[row] + -self.lengths[row] % self.context.multiple for row in rows)

    def counts(self, rows: Tensor) -> Counts:
        """Denominators of an optimizer step over these rows."""
        mask = self.mask.take(rows)
        live_B = row_sum(mask.values.bool().long(), mask.offsets)
        groups = self.group_B[rows][live_B > 0].unique()
        return Counts(tokens=int(live_B.sum()), rows=int((live_B > 0).sum()), groups=len(groups))

    def units(self, rows: Sequence[int]) -> list[list[int]]:
        """What a micro-batch must not tear apart: groups where the loss compares their rollouts, single rows else."""
        if GROUP.name not in self.numbers:
            return [[row] for row in rows]
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(int(self.group_B[row]), []).append(row)
        return list(groups.values())

    def pack(self, rows: Sequence[int], padding: int, device: torch.device) -> Packed:
        """These rows end to end, followed by `padding` tokens that nothing is asked of."""
        rows_B = torch.tensor(rows, dtype=torch.int64)
        prompts, targets, mask = self.prompts.take(rows_B), self.responses.take(rows_B), self.mask.take(rows_B)
        whole = prompts.append(targets)
        inputs = whole.head(whole.length_B - 1)
        length_B = inputs.length_B + -inputs.length_B % self.context.multiple
        lengths = length_B.tolist() + ([padding] if padding else [])
        offsets = to_offsets(length_B)
        # Of each input and of each predictor its place in the whole packing, W tokens; next tokens are settled by now.
        place_I = offsets[row_ids(inputs.offsets)] + positions(inputs.offsets)
        tokens_W = torch.zeros(sum(lengths), dtype=torch.int64).index_copy_(0, place_I, inputs.values.long())
        predictor_R = place_I[_predictors(whole.offsets, prompts.length_B)]
        here = _here(predictor_R, lengths, self.context)
        return Packed(
            rows=rows_B,
            tokens_1T=tokens_W[here.token_T][None].to(device),
            sequences=packing(lengths, device, self.context),
            predictor_S=here.predictor_S.to(device),
            target_S=targets.values.long()[here.here_S].to(device),
            here_S=here.here_S.to(device),
            mask_R=mask.values.to(device),
            row_R=row_ids(targets.offsets).to(device),
            offsets=targets.offsets.to(device),
            columns=self._columns(rows_B, device),
        )

    def _columns(self, rows_B: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Floating columns in float32, the type the loss is computed in; whole numbers as they are."""
        taken = {name: ragged.take(rows_B).values for name, ragged in self.tokens.items()}
        taken |= {name: values_B[rows_B] for name, values_B in self.numbers.items()}
        return {
            name: values.to(device, torch.float32 if values.is_floating_point() else values.dtype)
            for name, values in taken.items()
        }


class _Here(NamedTuple):
    """What of a packing of W tokens is on this context rank."""

    token_T: Tensor
    predictor_S: Tensor
    here_S: Tensor


def _here(predictor_R: Tensor, lengths: Sequence[int], context: Context) -> _Here:
    if context == ALONE:
        return _Here(torch.arange(sum(lengths)), predictor_R, torch.arange(len(predictor_R)))
    token_T = context.tokens(lengths)
    place_W = torch.full((sum(lengths),), -1).index_copy_(0, token_T, torch.arange(len(token_T)))
    place_R = place_W[predictor_R]
    (here_S,) = (place_R >= 0).nonzero(as_tuple=True)
    return _Here(token_T, place_R[here_S], here_S)


def _mask(batch: Batch, responses: Ragged) -> Ragged:
    """Which response tokens take part in the loss: all of them where the batch says nothing."""
    if LOSS_MASK in batch:
        return batch.ragged(LOSS_MASK)
    return Ragged(torch.ones(len(responses.values), dtype=torch.uint8), responses.offsets)


def _predictors(offsets: Tensor, prompt_length_B: Tensor) -> Tensor:
    """Where the logits of each response token stand once every sequence has lost its last token."""
    response = response_predictors(offsets, prompt_length_B)
    return response.predictor_R - row_ids(response.offsets)
