"""How a packing is dealt over context ranks: evenly, and so that each rank has as much to attend to.

A sequence is cut into twice as many chunks as there are ranks, and rank r holds chunks r and 2 * ranks - 1 - r: an
early one, which sees little, and a late one, which sees much. Transformer Engine's attention and Megatron's rotation
take the same order. Neighbours on a rank are therefore not neighbours in a sequence: whatever belongs to a token, its
position and the token after it too, is settled before the cut.

W tokens of the whole packing, T of them on this rank, B sequences, C chunks of a sequence on this rank, K keys that the
queries of those chunks meet, R response tokens, S of them predicted on this rank; G key-value heads, D numbers each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_rl.ops.segments import positions, to_offsets


class Piece(NamedTuple):
    """Numbers of queries and of keys; the queries are the last of the keys' tokens."""

    queries: int
    keys: int


class Context(NamedTuple):
    """Where a rank stands among those that share a packing: Context(ranks=2, rank=1) holds chunks 1 and 2 of four."""

    ranks: int = 1
    rank: int = 0

    @classmethod
    def here(cls) -> "Context":
        """Of this process, which has been cut before."""
        return cls(parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank())

    @property
    def chunks(self) -> tuple[int, ...]:
        """Those of this rank, out of the `multiple` that a sequence is cut into."""
        return (0,) if self.ranks == 1 else (self.rank, self.multiple - 1 - self.rank)

    @property
    def multiple(self) -> int:
        """The length of every sequence must be a multiple of this."""
        return 2 * self.ranks if self.ranks > 1 else 1

    def pieces(self, length: int) -> tuple[Piece, ...]:
        """What this rank attends from and to in a sequence of this length."""
        chunk = length // self.multiple
        return tuple(Piece(chunk, (number + 1) * chunk) for number in self.chunks)

    def tokens(self, lengths: Sequence[int]) -> Tensor:
        """Where each of this rank's T tokens stands in the whole packing."""
        start_B1, chunk_B1, number_C = self._layout(lengths)
        return _ranges(start_B1 + number_C * chunk_B1, chunk_B1.expand(-1, len(number_C)))

    def keys(self, lengths: Sequence[int]) -> Tensor:
        """For each of the K keys, piece by piece, where it stands in the tokens of all ranks end to end."""
        all_W = torch.cat([Context(self.ranks, rank).tokens(lengths) for rank in range(self.ranks)])
        place_W = torch.empty_like(all_W).scatter_(0, all_W, torch.arange(len(all_W)))
        start_B1, chunk_B1, number_C = self._layout(lengths)
        return place_W[_ranges(start_B1.expand(-1, len(number_C)), (number_C + 1) * chunk_B1)]

    def _layout(self, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        length_B1 = torch.tensor(lengths, dtype=torch.int64)[:, None]
        assert not (length_B1 % self.multiple).any(), "sequences are padded before they are dealt"
        return length_B1.cumsum(0) - length_B1, length_B1 // self.multiple, torch.tensor(self.chunks)


ALONE = Context()


def gathered(key_TGD: Tensor, value_TGD: Tensor, key_K: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of all ranks that this rank's queries meet; gradients go back to where they came from."""
    both_TGD = torch.cat((key_TGD, value_TGD), 1)
    whole_WGD = gather_from_sequence_parallel_region(both_TGD, group=parallel_state.get_context_parallel_group())
    key_KGD, value_KGD = whole_WGD.index_select(0, key_K).chunk(2, 1)
    return key_KGD, value_KGD


def whole(value_S: Tensor, here_S: Tensor, count: int) -> Tensor:
    """All R values of a micro-batch, known to every context rank; a rank's gradient is that of its own values.

    Every rank makes the same loss of them, so the sum of the ranks' gradients is the gradient of one loss.
    """
    if parallel_state.get_context_parallel_world_size() == 1:
        return value_S
    value_R: Tensor = _Whole.apply(value_S, here_S, count)
    return value_R


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_S: Tensor, here_S: Tensor, count: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(here_S)
        value_R = value_S.new_zeros(count).index_copy_(0, here_S, value_S)
        dist.all_reduce(value_R, group=parallel_state.get_context_parallel_group())
        return value_R

    @staticmethod
    def backward(ctx: Any, gradient_R: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (here_S,) = ctx.saved_tensors
        return gradient_R[here_S], None, None


def _ranges(first: Tensor, count: Tensor) -> Tensor:
    """`count` whole numbers from each `first` on, one range after another."""
    return first.flatten().repeat_interleave(count.flatten()) + positions(to_offsets(count.flatten()))
