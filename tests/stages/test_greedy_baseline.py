from megatron_rl.batch.columns import BASELINE, GROUP, KEPT, PHASE, REWARD, SLOT
from megatron_rl.drawing import requests
from megatron_rl.ports import Context
from megatron_rl.stages.generate import Generate
from megatron_rl.stages.greedy_baseline import GreedyBaseline
from megatron_rl.stages.judge import Judge
from tests.fakes.faulty_engine import FaultyEngine, loses
from tests.fakes.tabular import FirstAnswerIsRight, NumberedPrompts, TabularEngine


class Even(TabularEngine):
    """Right on even prompts when it is greedy."""

    def __init__(self, prompts):
        super().__init__(prompts)
        self.greedy = []

    def generate(self, batch, sampling=None):
        rollouts = super().generate(batch)
        if sampling is None:
            return rollouts
        assert sampling.temperature == 0
        assert set(batch[PHASE]) == {"greedy"}
        self.greedy.append(len(batch))
        return rollouts.with_columns(response_text=[str(group % 2) for group in batch[GROUP].tolist()])


def test_every_rollout_of_a_prompt_is_measured_by_its_one_greedy_rollout():
    machines = {"engine": Even(4), "judge": FirstAnswerIsRight(), "prompts": NumberedPrompts(4)}
    context = Context(step=0, version=0, seed=0, machines=machines)
    wave = requests(context, [(0, place) for place in range(4)], samples=3, first_group=0)
    judged = Judge()(Generate()(wave, None, context)[0], None, context)[0]
    batch, _ = GreedyBaseline()(judged, None, context)
    assert machines["engine"].greedy == [4]
    assert batch[BASELINE].tolist() == [1.0] * 3 + [0.0] * 3 + [1.0] * 3 + [0.0] * 3
    assert batch.without(BASELINE, KEPT) == judged
    assert batch[KEPT].tolist() == [1] * 12
    assert len(batch) == 12
    assert batch[SLOT].tolist() == judged[SLOT].tolist()
    assert batch[REWARD].tolist() == judged[REWARD].tolist()
    assert batch.metrics["greedy_baseline/mean"] == 0.5


def test_a_group_whose_greedy_rollout_failed_is_not_kept():
    engine = FaultyEngine(Even(4), {1: loses(2)})
    machines = {"engine": engine, "judge": FirstAnswerIsRight(), "prompts": NumberedPrompts(4)}
    context = Context(step=0, version=0, seed=0, machines=machines)
    wave = requests(context, [(0, place) for place in range(4)], samples=2, first_group=0)
    batch, _ = GreedyBaseline()(Judge()(Generate()(wave, None, context)[0], None, context)[0], None, context)
    assert batch[KEPT].tolist() == [1, 1, 1, 1, 0, 0, 1, 1]
    assert batch.metrics["greedy_baseline/failed"] == 1
    assert batch.metrics["greedy_baseline/mean"] == 1 / 3
