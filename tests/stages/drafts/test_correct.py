import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, DRAFT_WEIGHTS
from megatron_rl.ports import Context
from megatron_rl.stages.drafts.correct import Correct

CONTEXT = Context(step=0, version=0, seed=0)


def test_reused_tokens_take_their_weights_up_to_the_cap_and_fresh_ones_stay():
    batch = Batch.of({ADVANTAGE: [[1.0, 1.0, 1.0], [-2.0], [3.0]], DRAFT_WEIGHTS: [[0.5, 9.0], [], [0.25]]})
    corrected, _ = Correct()(batch, None, CONTEXT)
    assert corrected[ADVANTAGE].values.tolist() == [0.5, 2.0, 1.0, -2.0, 0.75]
    torch.testing.assert_close(corrected.metrics["drafts/weight_mean"], (0.5 + 2.0 + 0.25) / 3)


def test_without_drafts_nothing_changes():
    batch = Batch.of({ADVANTAGE: [[1.0], [2.0, 3.0]], DRAFT_WEIGHTS: [[], []]})
    assert Correct()(batch, None, CONTEXT)[0][ADVANTAGE].values.tolist() == [1.0, 2.0, 3.0]
