import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, LOSS_MASK, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.whitened_returns import WhitenedReturns

CONTEXT = Context(step=0, version=0, seed=0)


def advantages(rewards, masks, **fields):
    batch = Batch.of({REWARD: rewards, LOSS_MASK: masks})
    return WhitenedReturns(**fields)(batch, None, CONTEXT)[0][ADVANTAGE].values


def test_rewards_weigh_by_their_live_tokens_and_end_up_at_mean_zero_and_variance_one():
    # Three live tokens at 1 and one at 0: mean 3/4, sample variance 1/4.
    found = advantages([1.0, 0.0], [[1, 1, 1], [1, 0]])
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.5, -1.5, 0.0]))


def test_a_discount_makes_early_tokens_matter_less():
    found = advantages([1.0, 0.0], [[1, 1], [1]], gamma=0.5)
    returns = torch.tensor([0.5, 1.0, 0.0])
    torch.testing.assert_close(found, (returns - returns.mean()) / returns.std())


def test_rewards_that_agree_teach_nothing():
    assert advantages([1.0, 1.0], [[1], [1, 1]]).tolist() == [0.0, 0.0, 0.0]
