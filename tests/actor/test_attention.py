from inspect import signature
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_rl.actor import attention, groups
from megatron_rl.actor.attention import PackedAttention, equal_runs, packing
from megatron_rl.actor.context import ALONE, Context
from megatron_rl.actor.parallel import Parallel
from tests import ranks

LENGTHS = (5, 5, 3, 1, 7, 7, 7)
CPU = torch.device("cpu")
STILL_R = torch.zeros(8)
"""Frequencies that turn nothing, so that attention alone is seen."""
TURNING_R = 1e2 ** -(torch.arange(8) / 8)


def heads(kv_heads: int, total: int = sum(LENGTHS)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, key, value = (torch.randn(total, count, 16, requires_grad=True) for count in (4, kv_heads, kv_heads))
    return query, key, value


def attend(tensors: tuple[torch.Tensor, ...], lengths: tuple[int, ...]) -> torch.Tensor:
    ours = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=STILL_R)
    return ours(*tensors, None, packed_seq_params=packing(lengths, CPU))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_attention_is_causal_attention_within_each_sequence(kv_heads):
    query, key, value = heads(kv_heads)
    same_sequence = torch.block_diag(*[torch.ones(length, length) for length in LENGTHS]).bool()
    expected = scaled_dot_product_attention(
        query.transpose(0, 1),
        key.repeat_interleave(4 // kv_heads, 1).transpose(0, 1),
        value.repeat_interleave(4 // kv_heads, 1).transpose(0, 1),
        attn_mask=same_sequence.tril(),
    )
    torch.testing.assert_close(attend((query, key, value), LENGTHS), expected.transpose(0, 1).flatten(1))


def test_no_gradient_crosses_from_one_sequence_to_another():
    query, key, value = heads(2)
    mixed = attend((query, key, value), LENGTHS)
    mixed[5:10].sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad[5:10].abs().sum() > 0
        assert tensor.grad[:5].abs().sum() == 0
        assert tensor.grad[10:].abs().sum() == 0


def test_neighbours_of_one_length_share_a_call():
    assert list(equal_runs(LENGTHS)) == [(2, 5), (1, 3), (1, 1), (3, 7)]


def test_a_packing_says_where_sequences_begin_and_how_long_the_longest_is():
    packed = packing([3, 4], CPU)
    assert packed.cu_seqlens_q.tolist() == [0, 3, 7]
    assert (packed.max_seqlen_q, packed.qkv_format) == (4, "thd")
    assert packed.positions_T.tolist() == [0, 1, 2, 0, 1, 2, 3]


def test_layers_of_one_model_share_the_angles_of_a_packing():
    packed, tensors = packing(LENGTHS, CPU), heads(2)
    ours, theirs = torch.rand(8), torch.rand(8)
    for inverse_R in (ours, ours, theirs):
        PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=inverse_R)(*tensors, packed_seq_params=packed)
    assert len(packed.turns) == 2


def test_a_given_scale_replaces_the_default():
    tensors = heads(2)
    plain = attend(tensors, LENGTHS)
    ours = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=STILL_R, softmax_scale=0.9)
    assert not torch.allclose(ours(*tensors, None, packed_seq_params=packing(LENGTHS, CPU)), plain)


def attended(lengths: tuple[int, ...], kv_heads: int) -> dict[str, Any]:
    """This context rank's outputs and gradients, and where in the packing its tokens stand."""
    groups.cut(Parallel(cp=2))
    context, (query, key, value) = Context.here(), heads(kv_heads, sum(lengths))
    token_T = context.tokens(lengths)
    ours = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=TURNING_R)
    local = [tensor.detach()[token_T].requires_grad_() for tensor in (query, key, value)]
    mixed = ours(*local, None, packed_seq_params=packing(lengths, CPU, context))
    (mixed * slope(sum(lengths))[token_T]).sum().backward()
    return {"token": token_T, "mixed": mixed.detach().numpy(), "slopes": [tensor.grad.numpy() for tensor in local]}


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_context_ranks_mix_as_one_rank_does_and_their_gradients_add_up_to_its_own(kv_heads):
    lengths = (4, 8, 8, 12, 4)
    tensors = heads(kv_heads, sum(lengths))
    ours = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=TURNING_R)
    expected = ours(*tensors, None, packed_seq_params=packing(lengths, CPU))
    (expected * slope(sum(lengths))).sum().backward()
    for answer in ranks.run(attended, world=2, lengths=lengths, kv_heads=kv_heads):
        np.testing.assert_allclose(answer["mixed"], expected.detach()[answer["token"]], atol=1e-6)
        for found, tensor in zip(answer["slopes"], tensors, strict=True):
            np.testing.assert_allclose(found, tensor.grad[answer["token"]], atol=1e-5)


def slope(total: int) -> torch.Tensor:
    return torch.randn(total, 4 * 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("context", [ALONE, Context(2, 0), Context(2, 1)], ids=str)
@pytest.mark.parametrize("knows_groups", [True, False])
def test_the_one_kernel_of_a_gpu_is_given_what_it_takes(monkeypatch, knows_groups, context):
    """Played by a loop that accepts what torch's kernel accepts, now and before it knew grouped heads."""
    lengths = LENGTHS if context == ALONE else (4, 8, 8)
    wanted, packed = signature(attention.varlen_attn), packing(lengths, CPU, context)

    def kernel(*args, **kwargs):
        given = wanted.bind(*args, **kwargs).arguments
        query, key, value = (given[name] for name in ("query", "key", "value"))
        bounds = [given[name] for name in ("cu_seq_q", "cu_seq_k")]
        assert all(each.dtype == torch.int32 for each in bounds)
        assert [given[name] for name in ("max_q", "max_k")] == [int(each.diff().max()) for each in bounds]
        assert given["window_size"] == (-1, 0)
        assert knows_groups == ("enable_gqa" in given)
        assert knows_groups or query.shape[1:] == key.shape[1:] == value.shape[1:]
        grouped = {"scale": given["scale"], "enable_gqa": knows_groups}
        queries, keys = (each.diff().tolist() for each in bounds)
        pieces = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
        return torch.cat([last_rows(*(each.transpose(0, 1) for each in piece), grouped) for piece in pieces])

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_KERNEL_KNOWS_GROUPS", knows_groups)
    ours, (query, key, value) = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=STILL_R), heads(2)
    met_K = slice(None) if packed.key_K is None else packed.key_K
    given = (query[: len(packed.positions_T)], key[met_K], value[met_K])
    torch.testing.assert_close(ours._one_kernel(*given, packed), ours._run_by_run(*given, packed))


def last_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grouped: dict[str, Any]) -> torch.Tensor:
    """The queries stand at the end of the keys' tokens: filled up in front, they see what they saw."""
    ahead = key.shape[1] - query.shape[1]
    filled = torch.nn.functional.pad(query, (0, 0, ahead, 0))
    return scaled_dot_product_attention(filled, key, value, is_causal=True, **grouped)[:, ahead:].transpose(0, 1)
