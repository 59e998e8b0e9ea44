"""Attention over packed sequences for machines without Transformer Engine.

T tokens of this rank, of all sequences one after another; K keys that they meet, which are the same T tokens but where
context ranks share a packing; H query heads, G key-value heads, D numbers per head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from megatron_rl.actor.context import ALONE, Context, Piece, gathered
from megatron_rl.actor.rotation import Turns, rotated, turns
from megatron_rl.ops.segments import positions, to_offsets

_VARLEN_TAKES = signature(varlen_attn).parameters.keys()
_HAS_ONE_KERNEL = {"scale", "window_size"} <= _VARLEN_TAKES
_KERNEL_KNOWS_GROUPS = "enable_gqa" in _VARLEN_TAKES
"""Before torch 2.12 the variable-length kernel promises nothing for fewer key-value heads than query heads."""


class Bounds(NamedTuple):
    """Where, one after another, the pieces begin that a variable-length kernel attends from or to."""

    start: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Bounds":
        return cls(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device), max(lengths))


@dataclass
class Packing(PackedSeqParams):
    """Megatron's description of a packed micro-batch, with the lengths also on the host, where loops can read them.

    Megatron's own fields, and the lengths, are of the whole packing, also where context ranks share it.
    """

    lengths: tuple[int, ...] = ()
    context: Context = ALONE
    positions_T: Tensor = field(default_factory=lambda: torch.empty(0))
    """Of each token in its own sequence."""
    key_K: Tensor | None = None
    """Where each key stands in the tokens of all context ranks; None where there is one."""
    bounds: tuple[Bounds, Bounds] | None = None
    """Of the pieces' queries and keys, where they are not those of whole sequences."""
    turns: dict[tuple[int, torch.dtype], Turns] = field(default_factory=dict)
    """Angles of every token, by the frequencies they were computed from; the first layer fills it for the others."""


def packing(lengths: Sequence[int], device: torch.device, context: Context = ALONE) -> Packing:
    """Sequences of these lengths laid end to end; neighbours of one length cost one attention call between them.

    What fills a sequence up to a multiple is part of it here: it stands at the end, where nothing real looks.
    """
    sequences = Bounds.of(lengths, device)
    packed = Packing(
        qkv_format="thd",
        cu_seqlens_q=sequences.start,
        cu_seqlens_kv=sequences.start,
        max_seqlen_q=sequences.longest,
        max_seqlen_kv=sequences.longest,
        lengths=tuple(lengths),
        context=context,
        positions_T=positions(to_offsets(torch.tensor(lengths))).to(device),
    )
    if context == ALONE:
        return packed
    pieces = [piece for length in lengths for piece in context.pieces(length)]
    queries, keys = (Bounds.of(sizes, device) for sizes in zip(*pieces, strict=True))
    return replace(
        packed,
        positions_T=packed.positions_T[context.tokens(lengths).to(device)],
        key_K=context.keys(lengths).to(device),
        bounds=(queries, keys),
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
        if packed_seq_params.key_K is not None:
            key_TGD, value_TGD = gathered(key_TGD, value_TGD, packed_seq_params.key_K)
        return self._mixed(query_THD, key_TGD, value_TGD, packed_seq_params).flatten(1)

    def _mixed(self, query_THD: Tensor, key_KGD: Tensor, value_KGD: Tensor, packed: Packing) -> Tensor:
        if _HAS_ONE_KERNEL and query_THD.is_cuda and query_THD.dtype in (torch.float16, torch.bfloat16):
            return self._one_kernel(query_THD, key_KGD, value_KGD, packed)
        return self._run_by_run(query_THD, key_KGD, value_KGD, packed)

    def _turns(self, packed: Packing, dtype: torch.dtype) -> Turns:
        key = (id(self.inverse_R), dtype)
        if key not in packed.turns:
            packed.turns[key] = turns(packed.positions_T, self.inverse_R, dtype)
        return packed.turns[key]

    def _one_kernel(self, query_THD: Tensor, key_KGD: Tensor, value_KGD: Tensor, packed: Packing) -> Tensor:
        """Where queries are fewer than keys the last one sees all: so the kernel aligns them, and so are the pieces."""
        whole = Bounds(packed.cu_seqlens_q, packed.max_seqlen_q)
        queries, keys = packed.bounds or (whole, whole)
        grouped: dict[str, Any] = {"enable_gqa": True} if _KERNEL_KNOWS_GROUPS else {}
        if not _KERNEL_KNOWS_GROUPS:
            repeats = query_THD.shape[1] // key_KGD.shape[1]
            key_KGD, value_KGD = (heads.repeat_interleave(repeats, 1) for heads in (key_KGD, value_KGD))
        mixed_THD = varlen_attn(
            query_THD,
            key_KGD,
            value_KGD,
            queries.start,
            keys.start,
            queries.longest,
            keys.longest,
            scale=self.scale,
            window_size=(-1, 0),
            **grouped,
        )
        assert isinstance(mixed_THD, Tensor), "varlen_attn returns a pair only when asked for more"
        return mixed_THD

    def _run_by_run(self, query_THD: Tensor, key_KGD: Tensor, value_KGD: Tensor, packed: Packing) -> Tensor:
        """A call for each run of neighbours of equal length, and for each of its pieces, cheaper than a call each."""
        runs = [(count, packed.context.pieces(length)) for count, length in equal_runs(packed.lengths)]
        queries = [count * sum(piece.queries for piece in pieces) for count, pieces in runs]
        keys = [count * sum(piece.keys for piece in pieces) for count, pieces in runs]
        parts = zip(runs, query_THD.split(queries), key_KGD.split(keys), value_KGD.split(keys), strict=True)
        mixed = [
            self._equal(pieces, *(flat.unflatten(0, (count, -1)) for flat in flats))
            for (count, pieces), *flats in parts
        ]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _equal(self, pieces: Sequence[Piece], query_BLHD: Tensor, key_BMGD: Tensor, value_BMGD: Tensor) -> Tensor:
        """B sequences of one length, of which L queries meet M keys, flat again."""
        queries, keys = zip(*pieces, strict=True)
        parts = zip(query_BLHD.split(queries, 1), key_BMGD.split(keys, 1), value_BMGD.split(keys, 1), strict=True)
        mixed = [self._causal(*part) for part in parts]
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, 1)).flatten(0, 1)

    def _causal(self, query_BLHD: Tensor, key_BMGD: Tensor, value_BMGD: Tensor) -> Tensor:
        """The queries are those of the last L of the M keys' tokens."""
        L, M = query_BLHD.shape[1], key_BMGD.shape[1]
        seen_LM = None if L == M else query_BLHD.new_ones(L, M, dtype=torch.bool).tril(M - L)
        mixed_BHLD = scaled_dot_product_attention(
            query_BLHD.transpose(1, 2),
            key_BMGD.transpose(1, 2),
            value_BMGD.transpose(1, 2),
            attn_mask=seen_LM,
            is_causal=seen_LM is None,
            scale=self.scale,
            enable_gqa=query_BLHD.shape[2] != key_BMGD.shape[2],
        )
        return mixed_BHLD.transpose(1, 2)


def equal_runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(count, length) of each run of neighbours of one length."""
    return ((len(list(run)), length) for length, run in groupby(lengths))
