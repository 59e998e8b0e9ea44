from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from megatron_rl import checkpoint
from megatron_rl.actor import distributed_folder
from megatron_rl.actor.conversion import alone
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, REWARD, TOKENS
from megatron_rl.beside import finished
from megatron_rl.differences import between_checkpoints, between_rollouts
from megatron_rl.reshard.layout import Key
from megatron_rl.reshard.stored import Chunk

NAN = float("nan")


def batch(reward=(1.0, 0.0, NAN), tokens=((5, 9), (5,), (7, 2))) -> Batch:
    return Batch.of(
        {
            GROUP: torch.tensor([0, 0, 1]),
            TOKENS: [list(row) for row in tokens],
            REWARD: torch.tensor(reward, dtype=torch.float64),
        }
    )


class Learnt:
    """An actor of two tensors and a learning rate."""

    def __init__(self, weight: float = 1.0, moment: float = 2.0) -> None:
        self.held = {"layer.weight": weight, "optimizer.state.exp_avg.layer.weight": moment}

    def save(self, folder: Path) -> Future[None]:
        chunks = [Chunk(name, (2, 3), ((0, 2), (0, 3)), Key(0, name), ((0, 2), (0, 3))) for name in self.held]
        contents = distributed_folder.Contents(files=[chunks], objects=(), dtype=torch.float32)
        folder.mkdir()

        def produce(_: int, chunk: Chunk) -> torch.Tensor:
            tensor = torch.ones(2, 3)
            tensor[1, 0] = self.held[chunk.name]
            return tensor

        with alone():
            distributed_folder.write(folder, contents, produce, {})
        return finished(None)


class Counts:
    """An actor without tensors."""

    def __init__(self, steps: int = 3) -> None:
        self.steps = steps

    def save(self, folder: Path) -> Future[None]:
        folder.mkdir()
        (folder / "progress.json").write_text(f'{{"steps": {self.steps}}}')
        return finished(None)


DRAWN = {"sampler": {"drawn": 7}}


def saved(root: Path, memory: object = DRAWN, actor: Learnt | Counts | None = None) -> Path:
    return checkpoint.save(root, 1, actor or Counts(), memory, {}).folder


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("learnt"), actor=Learnt())


def test_the_same_bits_do_not_differ_numbers_that_are_none_included(tmp_path):
    assert between_rollouts(batch(), batch(), {}) is None
    batch().write_parquet(tmp_path / "one.parquet")
    assert between_rollouts(Batch.read_parquet(tmp_path / "one.parquet"), batch(), {}) is None


@pytest.mark.parametrize(
    ("changed", "place", "told"),
    [
        ({"reward": (1.0, 1.0, NAN)}, "column 'reward' of stage 'judge', rollout 1", ("0.0", "1.0")),
        ({"reward": (1.0, -0.0, NAN)}, "column 'reward' of stage 'judge', rollout 1", ("0.0", "-0.0")),
        ({"tokens": ((5, 9), (5,), (7, 3)), "reward": (0.0,) * 3}, "column 'tokens', rollout 2", ("[7, 2]", "[7, 3]")),
    ],
)
def test_rollouts_are_told_by_the_first_column_that_differs(changed, place, told):
    found = between_rollouts(batch(), batch(**changed), {"reward": "judge"})
    assert (found.place, (found.straight, found.resumed)) == (place, told)


def test_rollouts_and_columns_that_are_missing_are_told():
    assert between_rollouts(batch(), batch().take(torch.tensor([0])), {}).place == "number of rollouts"
    assert between_rollouts(batch(), batch().without(REWARD), {}).resumed == "nothing"


@pytest.mark.parametrize(
    ("memory", "place"),
    [
        ({"sampler": {"drawn": 8}}, "memory: 'sampler', 'drawn'"),
        ({"sampler": {"drawn": 7.0}}, "memory: 'sampler', 'drawn'"),
        ({"sampler": {"drawn": 7}, "buffer": [1]}, "memory: 'buffer'"),
    ],
)
def test_memory_is_told_by_slot_and_key(tmp_path, memory, place):
    found = between_checkpoints(saved(tmp_path / "one"), saved(tmp_path / "other", memory))
    assert found.place == place


def test_a_batch_in_memory_is_told_by_column(tmp_path):
    held = [{"buffer": [3, each]} for each in (batch(), batch(reward=(1.0, 0.5, NAN)))]
    found = between_checkpoints(saved(tmp_path / "one", held[0]), saved(tmp_path / "other", held[1]))
    assert str(found) == "memory: 'buffer'[1], column 'reward', rollout 1: 0.0 in the one, 0.5 in the other"


@pytest.mark.parametrize(
    ("actor", "place"),
    [
        (Learnt(weight=1.5, moment=1.0), "actor, tensor 'layer.weight', element 3 and 0 more of 6"),
        (Learnt(moment=-2.0), "actor, tensor 'optimizer.state.exp_avg.layer.weight', element 3 and 0 more of 6"),
    ],
    ids=("weight", "moment"),
)
def test_parameters_are_told_before_moments(learnt, tmp_path, actor, place):
    assert between_checkpoints(learnt, learnt) is None
    assert between_checkpoints(learnt, saved(tmp_path, actor=actor)).place == place


def test_how_far_the_learning_rate_came_is_told(tmp_path):
    found = between_checkpoints(saved(tmp_path / "one"), saved(tmp_path / "other", actor=Counts(4)))
    assert found.place == "actor/progress.json"


def test_nothing_damaged_is_compared(tmp_path):
    one, other = saved(tmp_path / "one"), saved(tmp_path / "other")
    (other / "memory/memory.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match=r"memory\.json"):
        between_checkpoints(one, other)
