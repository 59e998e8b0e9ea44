from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

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
    attention = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=STILL_R)
    return attention(*tensors, None, packed_seq_params=packing(lengths, CPU))


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
    attention = PackedAttention(SimpleNamespace(kv_channels=16), inverse_R=STILL_R, softmax_scale=0.9)
    assert not torch.allclose(attention(*tensors, None, packed_seq_params=packing(LENGTHS, CPU)), plain)
