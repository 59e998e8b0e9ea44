import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, LOSS_MASK, RETURNS, REWARD, VALUES
from megatron_rl.ports import Context
from megatron_rl.stages.generalised_advantage import GeneralisedAdvantage

CONTEXT = Context(step=0, version=0, seed=0)


def after(values, rewards, masks, **fields):
    batch = Batch.of({REWARD: rewards, VALUES: values, LOSS_MASK: masks})
    return GeneralisedAdvantage(**fields)(batch, None, CONTEXT)[0]


def test_one_response_by_hand():
    # delta = (0 + .5 * 1 - 0, 1 - 1) = (.5, 0); A = (.5 + .25 * 0, 0); returns = A + V = (.5, 1).
    batch = after([[0.0, 1.0]], [1.0], [[1, 1]], gamma=0.5, lam=0.5)
    assert batch[RETURNS].values.tolist() == [0.5, 1.0]
    torch.testing.assert_close(batch[ADVANTAGE].values, torch.tensor([0.5, -0.5]) / 0.5**0.5)


def test_with_lambda_one_and_no_discount_the_return_is_the_reward_everywhere():
    batch = after([[0.3, 0.7, 0.1], [0.2]], [1.0, 0.0], [[1, 1, 1], [1]])
    torch.testing.assert_close(batch[RETURNS].values, torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_a_masked_tail_neither_earns_nor_counts():
    short = after([[0.3, 0.7]], [1.0], [[1, 1]], lam=0.9)
    masked = after([[0.3, 0.7, 9.0]], [1.0], [[1, 1, 0]], lam=0.9)
    assert masked[ADVANTAGE].values.tolist() == [*short[ADVANTAGE].values.tolist(), 0.0]


def test_a_critic_that_was_right_has_explained_everything():
    batch = after([[1.0], [0.0]], [1.0, 0.0], [[1], [1]])
    assert batch.metrics["generalised_advantage/explained"] == 1.0
