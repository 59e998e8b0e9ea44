import os
import time

import pytest
import torch
import torch.distributed as dist

from tests import ranks


def total_of_ranks(scale: int) -> float:
    total = torch.tensor([float(dist.get_rank() * scale)])
    dist.all_reduce(total)
    return total.item()


def one_rank_raises() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second rank is unhappy")
    dist.barrier()


def one_rank_hangs() -> None:
    if dist.get_rank() == 1:
        time.sleep(600)
    dist.barrier()


def one_rank_dies() -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_of_every_world_answers(world):
    assert ranks.run(total_of_ranks, world=world, scale=10) == [sum(range(world)) * 10.0] * world


def test_the_first_failing_rank_is_the_one_reported_and_the_pool_goes_on():
    with pytest.raises(ranks.RankFailure, match=r"(?s)rank 1 of 2 .*the second rank is unhappy"):
        ranks.run(one_rank_raises, world=2)
    assert ranks.run(total_of_ranks, world=2, scale=1) == [1.0, 1.0]


def test_hung_and_dead_ranks_are_ended_and_explained_and_the_pool_starts_again():
    pool = ranks.RankPool(2)
    with pytest.raises(ranks.RankFailure, match=r"(?s)no answer in 3.0 s.*one_rank_hangs"):
        pool.run(one_rank_hangs, 2, 3.0, {})
    assert pool.run(total_of_ranks, 2, 60.0, {"scale": 1}) == [1.0, 1.0]
    with pytest.raises(ranks.RankFailure, match="rank 1 of 2 died with exit code 7"):
        pool.run(one_rank_dies, 2, 60.0, {})
    assert not pool.processes
