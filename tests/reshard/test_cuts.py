import pytest

from megatron_rl.reshard import cuts
from megatron_rl.reshard.cuts import Run
from megatron_rl.reshard.layout import LayoutError, ModelShape
from megatron_rl.reshard.names import ATTENTION

SHAPE = ModelShape(family="llama", layers=1, hidden=6, heads=4, kv_heads=2, head_dim=2, ffn=8, vocabulary=10)
QKV = ATTENTION[1]
Q, K, V = QKV.hf


def test_megatron_puts_each_key_value_head_behind_its_queries():
    assert list(cuts.megatron_qkv(QKV, SHAPE, 0, 1)) == [
        Run(Q, 0, 4),
        Run(K, 0, 2),
        Run(V, 0, 2),
        Run(Q, 4, 8),
        Run(K, 2, 4),
        Run(V, 2, 4),
    ]
    assert list(cuts.megatron_qkv(QKV, SHAPE, 1, 2)) == [Run(Q, 4, 8), Run(K, 2, 4), Run(V, 2, 4)]


def test_megatron_cuts_through_a_group_where_ranks_outnumber_key_value_heads():
    assert [list(cuts.megatron_qkv(QKV, SHAPE, rank, 4)) for rank in range(2)] == [
        [Run(Q, 0, 4)],
        [Run(K, 0, 2), Run(V, 0, 2)],
    ]


def test_vllm_puts_all_queries_first_and_shares_a_key_value_head_between_neighbours():
    assert list(cuts.vllm_qkv(QKV, SHAPE, 0, 1)) == [Run(Q, 0, 8), Run(K, 0, 4), Run(V, 0, 4)]
    assert [list(cuts.vllm_qkv(QKV, SHAPE, rank, 4)) for rank in (1, 2)] == [
        [Run(Q, 2, 4), Run(K, 0, 2), Run(V, 0, 2)],
        [Run(Q, 4, 6), Run(K, 2, 4), Run(V, 2, 4)],
    ]


@pytest.mark.parametrize("cut", [cuts.megatron_qkv, cuts.vllm_qkv])
def test_key_value_heads_that_neither_divide_nor_are_divided_are_refused(cut):
    with pytest.raises(LayoutError, match="2 key-value heads are neither a multiple nor a divisor of tp 3"):
        list(cut(QKV, SHAPE, 0, 3))


def test_gate_and_up_are_cut_each_for_itself():
    names = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
    tensor = cuts.stacked("fc1", cuts.gate_up(names, SHAPE, 1, 4), SHAPE)
    assert tensor.shape == (4, 6)
    assert [(piece.name, piece.box[0], piece.at[0]) for piece in tensor.pieces] == [
        ("mlp.gate_proj.weight", (2, 4), (0, 2)),
        ("mlp.up_proj.weight", (2, 4), (2, 4)),
    ]


def test_rows_beyond_the_vocabulary_are_zeros():
    part, empty = (cuts.vocabulary("e", "embed_tokens.weight", SHAPE, rows) for rows in ((8, 12), (12, 16)))
    assert (part.shape, part.pieces[0].box, part.zeros) == ((4, 6), ((8, 10), (0, 6)), (((2, 4), (0, 6)),))
    assert (empty.pieces, empty.zeros) == ((), (((0, 4), (0, 6)),))


def test_columns_are_cut_across():
    tensor = cuts.columns("proj", "mlp.down_proj.weight", SHAPE, 3, 4)
    assert (tensor.shape, tensor.pieces[0].box) == ((6, 2), ((0, 6), (6, 8)))


def test_a_window_cuts_the_runs_at_its_edges():
    assert list(cuts.window([Run("a", 10, 14), Run("b", 0, 4)], (3, 6))) == [Run("a", 13, 14), Run("b", 0, 2)]


def test_a_bias_is_stacked_as_its_weight_is():
    runs = [Run("q_proj.bias", 0, 2), Run("k_proj.bias", 2, 4)]
    tensor = cuts.stacked("bias", runs, SHAPE)
    assert (tensor.shape, tensor.pieces[1].at) == ((4,), ((2, 4),))


def test_expert_numbers_are_filled_in():
    assert cuts.numbered(("experts.{expert}.up", "experts.{expert}.gate"), 7) == ("experts.7.up", "experts.7.gate")
