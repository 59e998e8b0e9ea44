import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, BASELINE, REWARD, SPREAD, TOKENS
from megatron_rl.ports import Context
from megatron_rl.stages.advantage import Advantage

BATCH = Batch.of({TOKENS: [[1, 2], [], [3]], REWARD: [1.0, 0.0, 1.0], BASELINE: [0.5, 0.5, 0.0]})


def test_every_token_of_a_response_has_its_rollouts_advantage():
    scored, _ = Advantage()(BATCH, None, Context(step=0, version=0, seed=0))
    assert [row.tolist() for row in scored[ADVANTAGE].rows()] == [[0.5, 0.5], [], [1.0]]


def test_it_is_divided_by_the_spread_where_a_stage_has_written_one():
    scored, _ = Advantage()(
        BATCH.with_columns({SPREAD: torch.tensor([0.5, 1.0, 2.0])}), None, Context(step=0, version=0, seed=0)
    )
    assert scored[ADVANTAGE].values.tolist() == [1.0, 1.0, 0.5]
