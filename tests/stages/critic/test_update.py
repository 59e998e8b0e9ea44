import torch

from megatron_rl.batch.columns import LOSS_MASK, RETURNS, TOKENS, VALUES
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context
from megatron_rl.stages.critic.update import Update
from tests.fakes.critic import RunningMean
from tests.fakes.rollouts import rollouts


def judged():
    batch = rollouts()
    ones = Ragged(torch.ones(len(batch[TOKENS].values)), batch[TOKENS].offsets)
    return batch.with_columns({VALUES: ones, RETURNS: ones})


def after(step, **fields):
    critic = RunningMean()
    context = Context(step=step, version=step, seed=0, machines={"critic": critic})
    return Update(**fields)(judged(), None, context)[0], critic


def test_the_critic_learns_and_the_policy_too():
    batch, critic = after(step=0)
    assert critic.is_at == 0.5
    assert batch[LOSS_MASK].values.tolist() == judged()[LOSS_MASK].values.tolist()
    assert batch.metrics == {"critic/loss": 1.0, "critic/skipped": 0.0}


def test_while_the_critic_warms_up_nothing_is_left_for_the_policy():
    resting, critic = after(step=1, warmup=2)
    assert critic.is_at == 0.5
    assert resting[LOSS_MASK].values.sum() == 0
    assert after(step=2, warmup=2)[0][LOSS_MASK].values.sum() > 0
