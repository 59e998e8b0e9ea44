import random

import pytest

from megatron_rl.ops.packing import imbalance, pack


def long_tail(seed, rows=512, limit=8192):
    rng = random.Random(seed)
    return [min(limit, max(16, int(rng.lognormvariate(6.5, 1.0)))) for _ in range(rows)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("budget", [8192, 32768])
def test_512_long_tailed_rows_are_balanced_within_two_percent(seed, ranks, budget):
    lengths = long_tail(seed)
    packed = pack(lengths, budget=budget, ranks=ranks)
    assert imbalance(packed, lengths) <= 0.02


@pytest.mark.parametrize("ranks", [2, 8])
def test_a_quadratic_cost_is_balanced_too(ranks):
    lengths = long_tail(7, limit=4096)
    costs = [length * (4096 + length) for length in lengths]
    assert imbalance(pack(lengths, budget=16384, ranks=ranks, costs=costs), costs) <= 0.02


@pytest.mark.parametrize("seed", range(40))
def test_every_row_is_in_one_bin_under_the_budget_and_ranks_have_equally_many(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(0, 100) for _ in range(rng.randint(0, 60))]
    ranks, budget = rng.randint(1, 9), rng.randint(100, 300)
    packed = pack(lengths, budget=budget, ranks=ranks)
    assert len(packed) == ranks
    assert len({len(bins) for bins in packed}) == 1
    assert sorted(row for bins in packed for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= budget for bins in packed for rows in bins)


def test_bins_are_few():
    lengths = long_tail(1)
    bins = sum(len(rank) for rank in pack(lengths, budget=16384, ranks=4))
    assert bins <= sum(lengths) / 16384 * 1.05 + 4


def test_bins_fall_in_cost_so_ranks_in_lockstep_wait_little():
    lengths = long_tail(2)
    for rank in pack(lengths, budget=16384, ranks=4):
        costs = [sum(lengths[row] for row in rows) for rows in rank]
        assert costs == sorted(costs, reverse=True)


def test_the_same_lengths_pack_the_same_way():
    lengths = long_tail(3)
    assert pack(lengths, budget=16384, ranks=4) == pack(list(lengths), budget=16384, ranks=4)
    assert pack([4, 3, 2, 1], budget=5, ranks=2) == (((0, 3),), ((1, 2),))


def test_a_bin_is_empty_only_where_rows_are_fewer_than_bins():
    assert pack([5], budget=10, ranks=3) == (((0,),), ((),), ((),))
    assert all(rows for rank in pack([9, 1, 1, 1], budget=10, ranks=2) for rows in rank)


@pytest.mark.parametrize(
    ("lengths", "options", "complaint"),
    [
        ([3, 11], {"budget": 10, "ranks": 1}, "row 1 has 11 tokens"),
        ([3], {"budget": 10, "ranks": 0}, "at least one rank"),
        ([3], {"budget": 10, "ranks": 1, "costs": [1.0, 2.0]}, "one cost per row"),
    ],
)
def test_what_cannot_be_packed_is_refused(lengths, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        pack(lengths, **options)
