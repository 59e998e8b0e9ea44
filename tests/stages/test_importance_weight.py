import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import DRAW_ODDS, LOSS_WEIGHT
from megatron_rl.ports import Context
from megatron_rl.stages.importance_weight import ImportanceWeight

CONTEXT = Context(step=0, version=0, seed=0)


def test_the_worked_example_normalised_over_the_batch():
    weighed, _ = ImportanceWeight()(Batch.of({DRAW_ODDS: [8 / 9, 16 / 9]}), None, CONTEXT)
    torch.testing.assert_close(
        weighed[LOSS_WEIGHT], torch.tensor([1.0, 0.757858], dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert abs(weighed.metrics["importance_weight/raw_max"] - 1.048241) < 1e-6


def test_weights_already_there_are_multiplied():
    batch = Batch.of({DRAW_ODDS: [1.0, 1.0], LOSS_WEIGHT: [0.5, 2.0]})
    assert ImportanceWeight()(batch, None, CONTEXT)[0][LOSS_WEIGHT].tolist() == [0.5, 2.0]
