from pathlib import Path

import pytest
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_rl.actor import groups
from megatron_rl.actor.parallel import Coordinates, Parallel
from tests import ranks
from tests.actor.training import actor_of
from tests.fakes.tiny_models import tiny_folder


def standing(cut: dict[str, int]) -> tuple[Coordinates, Coordinates]:
    ours = groups.cut(Parallel(**cut))
    megatron = Coordinates(
        tp=parallel_state.get_tensor_model_parallel_rank(),
        cp=parallel_state.get_context_parallel_rank(),
        dp=parallel_state.get_data_parallel_rank(),
        pp=parallel_state.get_pipeline_model_parallel_rank(),
    )
    return ours, megatron


@pytest.mark.parametrize(
    "cut",
    [{"tp": 2, "pp": 2}, {"dp": 2, "pp": 2}, {"tp": 2, "dp": 2}, {"dp": 4}, {"cp": 2, "tp": 2}, {"cp": 2, "dp": 2}],
    ids=str,
)
def test_a_rank_stands_where_megatron_says(cut):
    for ours, megatron in ranks.run(standing, world=4, cut=cut):
        assert ours == megatron


def wrong_world() -> str:
    try:
        groups.cut(Parallel(tp=2))
    except ValueError as error:
        return str(error)
    return ""


def test_too_few_ranks_are_refused_with_both_counts():
    (sentence,) = ranks.run(wrong_world, world=1)
    assert sentence.startswith("parallel takes tp*cp*dp*pp = 2 ranks, but 1 joined")


def joined_twice() -> int:
    groups.leave()
    groups.join_alone()
    groups.cut(Parallel())
    return dist.get_world_size()


def test_a_process_that_left_may_join_again():
    assert ranks.run(joined_twice, world=1) == [1]


def threads_after_actors(folder: Path) -> list[int]:
    groups.leave()
    counted = []
    for _ in range(3):
        groups.join_alone()
        actor_of(folder)
        groups.leave()
        counted.append(len(list(Path("/proc/self/task").iterdir())))
    groups.join_alone()
    return counted


def test_leaving_ends_the_threads_of_every_group_that_an_actor_was_given(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=1)
    (counted,) = ranks.run(threads_after_actors, world=1, folder=folder)
    # A process keeps a few helpers of torch's own once they have started.
    assert counted[-1] - counted[0] <= 2
