from megatron_rl.batch.columns import VALUES
from megatron_rl.ports import Context
from megatron_rl.stages.critic.value import Value
from tests.fakes.critic import RunningMean
from tests.fakes.rollouts import rollouts


def test_values_come_from_the_critic():
    critic = RunningMean(value=0.25)
    batch, _ = Value()(rollouts(), None, Context(step=0, version=0, seed=0, machines={"critic": critic}))
    assert set(batch[VALUES].values.tolist()) == {0.25}
