"""Attention over packed sequences for machines without Transformer Engine.

T tokens of all sequences one after another, H query heads, G key-value heads, D numbers per head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from itertools import accumulate, groupby
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from megatron_rl.actor.rotation import Turns, rotated, turns

_VARLEN_TAKES = signature(varlen_attn).parameters.keys()
_HAS_ONE_KERNEL = {"scale", "window_size"} <= _VARLEN_TAKES
_KERNEL_KNOWS_GROUPS = "enable_gqa" in _VARLEN_TAKES
"""Before torch 2.12 the variable-length kernel promises nothing for fewer key-value heads than query heads."""


@dataclass
class Packing(PackedSeqParams):
    """Megatron's description of a packed micro-batch, with the lengths also on the host, where loops can read them."""

    lengths: tuple[int, ...] = ()
    positions_T: Tensor = field(default_factory=lambda: torch.empty(0))
    """Of each token in its own sequence."""
    turns: dict[tuple[int, torch.dtype], Turns] = field(default_factory=dict)
    """Angles of every token, by the frequencies they were computed from; the first layer fills it for the others."""


def packing(lengths: Sequence[int], device: torch.device) -> Packing:
    """Sequences of these lengths laid end to end; neighbours of one length cost one attention call between them."""
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    return Packing(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        lengths=tuple(lengths),
        positions_T=torch.cat([torch.arange(length) for length in lengths]).to(device),
    )


class PackedAttention(torch.nn.Module):
    """Causal attention within each sequence of a packing: none sees another, and no padding is computed.

    It rotates queries and keys itself. Megatron's own rotation of packed sequences computes the angles of every token
    twice in every layer, and on a GPU waits four times a layer for the host to read the lengths.
    """

    def __init__(
        self,
        config: Any,  # noqa: ANN401
        *,
        inverse_R: Tensor,
        softmax_scale: float | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__()
        self.inverse_R = inverse_R
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale

    def forward(
        self,
        query_THD: Tensor,
        key_TGD: Tensor,
        value_TGD: Tensor,
        attention_mask: None = None,
        *,
        packed_seq_params: Packing,
        **kwargs: object,
    ) -> Tensor:
        """Heads side by side, one row a token; `kwargs` are Megatron's mask type and bias, which a packing implies."""
        turns = self._turns(packed_seq_params, query_THD.dtype)
        query_THD, key_TGD = rotated(query_THD, turns), rotated(key_TGD, turns)
        if _HAS_ONE_KERNEL and query_THD.is_cuda and query_THD.dtype in (torch.float16, torch.bfloat16):
            mixed_THD = self._one_kernel(query_THD, key_TGD, value_TGD, packed_seq_params)
        else:
            mixed_THD = self._run_by_run(query_THD, key_TGD, value_TGD, packed_seq_params.lengths)
        return mixed_THD.flatten(1)

    def _turns(self, packed: Packing, dtype: torch.dtype) -> Turns:
        key = (id(self.inverse_R), dtype)
        if key not in packed.turns:
            packed.turns[key] = turns(packed.positions_T, self.inverse_R, dtype)
        return packed.turns[key]

    def _one_kernel(self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, packed: Packing) -> Tensor:
        bounds, longest = packed.cu_seqlens_q, packed.max_seqlen_q
        grouped: dict[str, Any] = {"enable_gqa": True} if _KERNEL_KNOWS_GROUPS else {}
        if not _KERNEL_KNOWS_GROUPS:
            repeats = query_THD.shape[1] // key_TGD.shape[1]
            key_TGD, value_TGD = (heads.repeat_interleave(repeats, 1) for heads in (key_TGD, value_TGD))
        mixed_THD = varlen_attn(
            query_THD,
            key_TGD,
            value_TGD,
            bounds,
            bounds,
            longest,
            longest,
            scale=self.scale,
            window_size=(-1, 0),
            **grouped,
        )
        assert isinstance(mixed_THD, Tensor), "varlen_attn returns a pair only when asked for more"
        return mixed_THD

    def _run_by_run(self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, lengths: Sequence[int]) -> Tensor:
        """One call for each run of neighbours of equal length: cheaper than a call each, and nothing is padded."""
        runs = list(equal_runs(lengths))
        sizes = [count * length for count, length in runs]
        parts = zip(runs, query_THD.split(sizes), key_TGD.split(sizes), value_TGD.split(sizes), strict=True)
        mixed = [self._equal(*(flat.unflatten(0, run) for flat in flats)) for run, *flats in parts]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _equal(self, query_BLHD: Tensor, key_BLGD: Tensor, value_BLGD: Tensor) -> Tensor:
        """B sequences of one length L, flat again."""
        mixed_BHLD = scaled_dot_product_attention(
            query_BLHD.transpose(1, 2),
            key_BLGD.transpose(1, 2),
            value_BLGD.transpose(1, 2),
            is_causal=True,
            scale=self.scale,
            enable_gqa=query_BLHD.shape[2] != key_BLGD.shape[2],
        )
        return mixed_BHLD.transpose(1, 2).flatten(0, 1)


def equal_runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(count, length) of each run of neighbours of one length."""
    return ((len(list(run)), length) for length, run in groupby(lengths))
