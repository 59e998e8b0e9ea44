from inspect import signature
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_rl.actor import attention
from megatron_rl.actor.attention import PackedAttention, equal_runs, packing

LENGTHS = (5, 5, 3, 1, 7, 7, 7)
CPU = torch.device("cpu")
STILL_R = torch.zeros(8)
"""Frequencies that turn nothing, so that attention alone is seen."""


def heads(kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    total = sum(LENGTHS)
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


@pytest.mark.parametrize("knows_groups", [True, False])
def test_the_one_kernel_of_a_gpu_is_given_what_it_takes(monkeypatch, knows_groups):
    """Played by a loop that accepts what torch's kernel accepts, now and before it knew grouped heads."""
    wanted, packed = signature(attention.varlen_attn), packing(LENGTHS, CPU)

    def kernel(*args, **kwargs):
        given = wanted.bind(*args, **kwargs).arguments
        query, key, value, bounds = (given[name] for name in ("query", "key", "value", "cu_seq_q"))
        assert bounds.dtype == torch.int32
        assert {type(given[name]) for name in ("max_q", "max_k")} == {int}
        assert given["window_size"] == (-1, 0)
        assert knows_groups == ("enable_gqa" in given)
        assert knows_groups or query.shape == key.shape == value.shape
        grouped = {"is_causal": True, "scale": given["scale"], "enable_gqa": knows_groups}
        sequences = (
            [tensor[start:stop].transpose(0, 1) for tensor in (query, key, value)]
            for start, stop in pairwise(bounds.tolist())
        )
        return torch.cat([scaled_dot_product_attention(*each, **grouped).transpose(0, 1) for each in sequences])

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_KERNEL_KNOWS_GROUPS", knows_groups)
    ours, tensors = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=STILL_R), heads(2)
    torch.testing.assert_close(ours._one_kernel(*tensors, packed), ours._run_by_run(*tensors, LENGTHS))
