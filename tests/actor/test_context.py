"""Dealing a packing over context ranks: every token once, as much to see for each, and no gradient lost or doubled."""

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _get_thd_freqs_on_this_cp_rank

from megatron_rl.actor import groups
from megatron_rl.actor.attention import packing
from megatron_rl.actor.context import ALONE, Context, Piece, whole
from megatron_rl.actor.parallel import Parallel
from tests import ranks

LENGTHS = (12, 24, 12, 12, 36)
CPU = torch.device("cpu")


def test_the_example_of_the_docstring():
    assert Context(ranks=2, rank=1).chunks == (1, 2)
    assert Context(ranks=2, rank=1).tokens([4, 8]).tolist() == [1, 2, 6, 7, 8, 9]
    assert Context(ranks=2, rank=1).pieces(8) == (Piece(2, 4), Piece(2, 6))


def test_alone_a_rank_holds_every_sequence_as_it_is():
    assert ALONE.tokens(LENGTHS).tolist() == list(range(sum(LENGTHS)))
    assert ALONE.pieces(12) == (Piece(12, 12),)
    assert packing(LENGTHS, CPU).key_K is None


@pytest.mark.parametrize("size", [2, 3])
def test_every_token_is_on_one_rank_and_each_rank_has_as_many_and_as_much_to_see(size):
    contexts = [Context(size, rank) for rank in range(size)]
    held = torch.cat([context.tokens(LENGTHS) for context in contexts])
    assert held.sort().values.tolist() == list(range(sum(LENGTHS)))
    seen = [
        [sum(range(keys - queries + 1, keys + 1)) for length in LENGTHS for queries, keys in context.pieces(length)]
        for context in contexts
    ]
    assert len({sum(each) for each in seen}) == 1
    assert len({len(context.tokens(LENGTHS)) for context in contexts}) == 1


@pytest.mark.parametrize("size", [2, 3])
def test_the_queries_of_a_piece_are_the_last_of_its_keys_which_begin_their_sequence(size):
    held = torch.cat([Context(size, rank).tokens(LENGTHS) for rank in range(size)])
    starts = [0, *accumulate(LENGTHS)]
    for context in (Context(size, rank) for rank in range(size)):
        pieces = [
            (start, piece) for start, length in zip(starts, LENGTHS, strict=False) for piece in context.pieces(length)
        ]
        queries = context.tokens(LENGTHS).split([piece.queries for _, piece in pieces])
        keys = held[context.keys(LENGTHS)].split([piece.keys for _, piece in pieces])
        for (start, piece), query, key in zip(pieces, queries, keys, strict=True):
            assert key.tolist() == list(range(start, start + piece.keys))
            assert key[-piece.queries :].tolist() == query.tolist()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tokens_lie_in_the_order_that_megatron_s_rotation_of_packed_sequences_expects(size):
    longest = torch.arange(max(LENGTHS))
    for rank in range(size):
        expected = [
            _get_thd_freqs_on_this_cp_rank(rank, size, torch.empty(length // size), longest) for length in LENGTHS
        ]
        packed = packing(LENGTHS, CPU, Context(size, rank))
        assert packed.positions_T.tolist() == torch.cat(expected).tolist()
        assert packed.cu_seqlens_q.tolist() == [0, *accumulate(LENGTHS)]
        assert packed.max_seqlen_q == max(LENGTHS)


def parts_of_a_loss(here: list[list[int]]) -> dict[str, Any]:
    groups.cut(Parallel(cp=2))
    context = Context.here()
    here_S = torch.tensor(here[context.rank], dtype=torch.int64)
    value_S = (here_S + 1.0).requires_grad_()
    value_R = whole(value_S, here_S, 4)
    value_R.square().sum().backward()
    return {"context": tuple(context), "all": value_R.tolist(), "slope": np.asarray(value_S.grad)}


@pytest.mark.parametrize("here", [[[0, 3], [1, 2]], [[0, 1, 2, 3], []]], ids=str)
def test_each_rank_knows_all_values_and_moves_its_own(here):
    for rank, answer in enumerate(ranks.run(parts_of_a_loss, world=2, here=here)):
        assert answer["context"] == (2, rank)
        assert answer["all"] == [1.0, 2.0, 3.0, 4.0]
        assert answer["slope"].tolist() == [2.0 * (place + 1) for place in here[rank]]
