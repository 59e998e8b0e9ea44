import numpy as np
import pytest

from megatron_rl.actor.microbatch import Cost, Limits, plan


def long_tail(count: int = 512, seed: int = 0) -> list[int]:
    """Lengths as responses have them: most short, a few near the budget."""
    draw = np.random.default_rng(seed)
    return np.clip(np.exp(draw.normal(6.0, 1.0, count)), 16, 8192).astype(int).tolist()


def everyone(microbatches):
    return sorted(row for bins in microbatches.rows for rows in bins for row in rows)


def test_the_example_of_the_docstring():
    assert plan([4, 3, 2, 1], Limits(tokens=5, ranks=2)).rows == (((0, 3),), ((1, 2),))


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("token_multiple", [1, 2, 8])
def test_no_padding_is_computed_and_data_ranks_carry_the_same(ranks, token_multiple):
    lengths = long_tail()
    limits = Limits(tokens=16384, ranks=ranks, token_multiple=token_multiple, cost=Cost(7e9, 28 * 3584))
    microbatches = plan(lengths, limits)
    assert everyone(microbatches) == list(range(512))
    assert microbatches.processed / sum(lengths) <= 1.02
    assert microbatches.imbalance <= 0.02
    assert len({len(bins) for bins in microbatches.rows}) == 1
    fullest = max(microbatches.tokens(rows) + microbatches.padding(rows) for bins in microbatches.rows for rows in bins)
    assert fullest <= 16384


def test_an_interleaved_pipeline_gets_a_multiple_of_its_stages():
    microbatches = plan(long_tail(37), Limits(tokens=4096 * 2, ranks=2, rounds=4))
    assert all(len(bins) % 4 == 0 for bins in microbatches.rows)
    assert everyone(microbatches) == list(range(37))


def test_an_empty_micro_batch_has_something_to_compute():
    microbatches = plan([3], Limits(tokens=8, ranks=2, token_multiple=2))
    assert microbatches.rows == (((0,),), ((),))
    assert [microbatches.padding(rows) for (rows,) in microbatches.rows] == [1, 2]


def test_rows_can_be_taken_one_by_one():
    microbatches = plan([5, 1, 3], Limits(tokens=2, ranks=1, packed=False))
    assert sorted(microbatches.rows[0]) == [(0,), (1,), (2,)]
    assert microbatches.processed == 9


def test_a_plan_depends_on_nothing_but_lengths_and_limits():
    limits = Limits(tokens=16384, ranks=4)
    assert plan(long_tail(), limits) == plan(long_tail(), limits)
