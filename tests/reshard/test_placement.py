import itertools

import numpy as np
import pytest

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.engines import vllm_layout
from megatron_rl.reshard.layout import LayoutError, ModelShape
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import Placement, best, colocated, split, together
from megatron_rl.reshard.plan import plan

SHAPE = ModelShape(family="llama", layers=4, hidden=16, heads=8, kv_heads=4, head_dim=4, ffn=32, vocabulary=64)


def test_the_assignment_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for n in range(1, 7):
        for _ in range(20):
            worth = rng.integers(0, 9, (n, n)).tolist()
            every = itertools.permutations(range(n))
            most = max(sum(worth[row][column] for row, column in enumerate(columns)) for columns in every)
            chosen = best(worth)
            assert sorted(chosen) == list(range(n))
            assert sum(worth[row][column] for row, column in enumerate(chosen)) == most


def test_ties_keep_the_diagonal():
    assert best([[3] * 5 for _ in range(5)]) == [0, 1, 2, 3, 4]


def test_ranks_and_gpus_must_match():
    with pytest.raises(LayoutError, match="a group of 2 ranks needs as many GPUs"):
        best([[1, 2, 3], [4, 5, 6]])


def test_a_group_is_numbered_so_that_most_is_in_place():
    # Two stages of a tensor-parallel pair make one group, so GPUs 0 and 2 hold what workers 0 and 1 want.
    source, target = megatron_layout(SHAPE, Parallel(tp=2, pp=2)), vllm_layout(SHAPE, tp=4)
    chosen = colocated(source, target)
    moved = plan(source, target, chosen).wire_bytes
    every = [
        plan(source, target, Placement(source=(0, 1, 2, 3), target=gpus)).wire_bytes
        for gpus in itertools.permutations(range(4))
    ]
    assert moved == min(every) < max(every)


def test_groups_stay_on_their_own_gpus():
    source, target = megatron_layout(SHAPE, Parallel(tp=2, pp=2, dp=2)), vllm_layout(SHAPE, tp=4, replicas=2)
    chosen = colocated(source, target).target
    assert [sorted(chosen[:4]), sorted(chosen[4:])] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_split_shares_no_gpu_and_together_shares_one():
    source, target = megatron_layout(SHAPE, Parallel(tp=2)), vllm_layout(SHAPE, tp=1, replicas=2)
    assert split(source, target) == Placement(source=(0, 1), target=(2, 3))
    assert together(source, target) == Placement(source=(0, 0), target=(0, 0))


def test_a_gpu_holds_each_shard_once():
    source = megatron_layout(SHAPE, Parallel(tp=2, dp=2))
    assert Placement(source=(5, 5, 5, 6), target=()).held(source) == {5: (0, 1), 6: (1,)}
