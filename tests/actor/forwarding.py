"""One forward pass through however many tensor ranks, stages and chunks, without Megatron's training schedules."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region

from megatron_rl.actor.attention import packing
from megatron_rl.actor.build import Model
from megatron_rl.actor.context import Context
from megatron_rl.actor.parallel import Parallel


def logits(model: Model, tokens_T: Sequence[int], lengths: Sequence[int]) -> np.ndarray | None:
    """Logits over the real vocabulary, T rows, on ranks of the last stage; None on others."""
    parallel, rank = model.parallel, dist.get_rank()
    stride = parallel.tp * parallel.cp * parallel.dp
    dealt = _Dealt.of(tokens_T, lengths, parallel, rank)
    packed = packing(dealt.lengths, torch.device("cpu"), dealt.context)
    rows = dealt.ids_1T.shape[1] // (parallel.tp if parallel.splits_sequence else 1)
    output = None
    for position in range(parallel.pp * parallel.vpp):
        if position % parallel.pp != parallel.coordinates(rank).pp:
            continue
        chunk = model.chunks[position // parallel.pp]
        if position:
            received = torch.empty(rows, 1, model.config.hidden_size)
            dist.recv(received, (rank - stride) % parallel.world)
            chunk.set_input_tensor(received)
        output = chunk(dealt.ids_1T, None, None, packed_seq_params=packed)
        if position < parallel.pp * parallel.vpp - 1:
            dist.send(output.detach().contiguous(), (rank + stride) % parallel.world)
            output = None
    if output is None or not parallel_state.is_pipeline_last_stage(ignore_virtual=True):
        return None
    gathered = gather_from_tensor_model_parallel_region(output)
    return dealt.together(gathered[0, :, : model.architecture.shape.vocabulary]).numpy()


@dataclass(frozen=True, kw_only=True)
class _Dealt:
    """A packing filled up to what divides over the context ranks, and this rank's part of it."""

    context: Context
    lengths: list[int]
    ids_1T: torch.Tensor
    place_R: torch.Tensor
    """Of each real token in the whole packing."""

    @classmethod
    def of(cls, tokens: Sequence[int], lengths: Sequence[int], parallel: Parallel, rank: int) -> "_Dealt":
        context = Context(parallel.cp, parallel.coordinates(rank).cp)
        filled = [length + -length % context.multiple for length in lengths]
        starts = [0, *accumulate(filled)]
        place_R = torch.cat([torch.arange(length) + start for length, start in zip(lengths, starts, strict=False)])
        ids_W = torch.zeros(sum(filled), dtype=torch.int64).index_copy_(0, place_R, torch.tensor(list(tokens)))
        return cls(context=context, lengths=filled, ids_1T=ids_W[context.tokens(filled)][None], place_R=place_R)

    def together(self, part_TV: torch.Tensor) -> torch.Tensor:
        """Rows of all real tokens, from the parts of all context ranks."""
        parts = [torch.empty_like(part_TV) for _ in range(self.context.ranks)]
        dist.all_gather(parts, part_TV.contiguous(), group=parallel_state.get_context_parallel_group())
        token_W = torch.cat([Context(self.context.ranks, rank).tokens(self.lengths) for rank in range(len(parts))])
        return torch.cat(parts)[token_W.argsort()][self.place_R]
