import numpy as np
import torch
from scipy import stats

from megatron_rl.batch.columns import DRAW_ODDS, PROMPT_ID, REWARD, STATUS
from megatron_rl.batch.memory import read_memory, write_memory
from megatron_rl.pipeline import chain
from megatron_rl.ports import Context
from megatron_rl.samplers.prioritised import Prioritised
from megatron_rl.stages.generate import Generate
from megatron_rl.stages.judge import Judge
from tests.fakes.faulty_engine import FaultyEngine
from tests.fakes.tabular import FirstAnswerIsRight, NumberedPrompts, TabularEngine


def context(prompts=4):
    return Context(step=0, version=0, seed=0, machines={"prompts": NumberedPrompts(prompts)})


def test_all_priorities_alike_is_uniform_sampling_with_odds_of_one():
    batch, _ = Prioritised(prompts=2, samples=3).draw(None, context())
    assert len(set(batch[PROMPT_ID])) == 2
    np.testing.assert_allclose(batch[DRAW_ODDS], 1.0)


def test_the_worked_example_of_odds():
    memory = {"priority": {"p0": 1.0, "p1": 0.25, "p2": 4.0, "p3": 1.0}, "drawn": 0}
    batch, _ = Prioritised(prompts=4, samples=1, exponent=0.5, floor=0.0).draw(memory, context())
    odds = dict(zip(batch[PROMPT_ID], batch[DRAW_ODDS].tolist(), strict=True))
    np.testing.assert_allclose([odds[f"p{i}"] for i in range(4)], np.array([2, 1, 4, 2]) / 9 * 4)


def test_a_priority_changed_inside_an_epoch_changes_the_very_next_draws():
    sampler = Prioritised(prompts=1, samples=1, exponent=1.0, floor=0.0)
    memory = {"priority": {"p0": 1.0, "p1": 2.0, "p2": 3.0, "p3": 4.0}, "drawn": 0}
    count = np.zeros(4)
    for _ in range(4000):
        batch, memory = sampler.draw(memory, context())
        count[int(batch[PROMPT_ID][0][1:])] += 1
    assert stats.chisquare(count, 4000 * np.array([0.1, 0.2, 0.3, 0.4])).pvalue > 1e-3


def test_prompts_that_teach_gain_and_prompts_that_agree_fall_to_the_floor():
    sampler = Prioritised(prompts=2, samples=4)
    batch, memory = sampler.draw(None, context(2))
    first = batch[PROMPT_ID][0]
    rewards = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    memory = sampler.observe(batch.with_columns({REWARD: rewards}), memory, context(2))
    other = batch[PROMPT_ID][4]
    np.testing.assert_allclose(memory["priority"][first], 0.375 / (0.5 + 1e-4) + 1e-6)
    assert memory["priority"][other] == 1e-6
    again, _ = sampler.draw(memory, context(2))
    assert again.metrics["prioritised/at_floor_share"] == 0.5
    assert again[DRAW_ODDS].min() > 0.05


def test_a_prompt_whose_rollouts_all_failed_keeps_its_priority_and_others_go_by_the_living():
    class Grades(FirstAnswerIsRight):
        def judge(self, batch):
            assert set(batch[STATUS]) == {"ok"}
            return super().judge(batch).with_columns({REWARD: [1.0, 0.0, 1.0, 1.0]})

    engine = FaultyEngine(TabularEngine(3), {0: lambda rollouts: rollouts.take(torch.tensor([0, 1, 5, 6]))})
    machines = {"engine": engine, "prompts": NumberedPrompts(3), "judge": Grades()}
    there, sampler = Context(step=0, version=0, seed=0, machines=machines), Prioritised(prompts=3, samples=4)
    batch, memory = sampler.draw({"priority": {"p0": 0.3, "p1": 0.3, "p2": 0.3}, "drawn": 0}, there)
    mixed, agreed, lost = dict.fromkeys(batch[PROMPT_ID])
    judged, _ = chain([("generate", Generate()), ("judge", Judge())])(batch, {}, there)
    after = sampler.observe(judged, memory, there)["priority"]
    np.testing.assert_allclose(after[mixed], 0.5 / (0.5**0.5 + 1e-4) + 1e-6)
    assert (after[agreed], after[lost]) == (1e-6, 0.3)


def test_one_rollout_a_prompt_is_measured_by_what_the_prompt_got_before():
    sampler, memory = Prioritised(prompts=3, samples=1), None
    names = ("p0", "p1", "p2")
    visits = []
    for solved in (("p0",), ("p0", "p1"), ("p0",)):
        batch, memory = sampler.draw(memory, context(3))
        rewards = [float(name in solved) for name in batch[PROMPT_ID]]
        memory = sampler.observe(batch.with_columns({REWARD: rewards}), memory, context(3))
        visits.append([memory["priority"].get(name) for name in names])
    assert visits[0] == [None] * 3
    np.testing.assert_allclose(visits[1:], np.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.0]]) + 1e-6)


def test_a_group_that_failures_left_alone_keeps_its_priority():
    sampler = Prioritised(prompts=2, samples=2)
    batch, memory = sampler.draw({"priority": {"p0": 0.3, "p1": 0.3}, "drawn": 0}, context(2))
    living = batch.take(torch.tensor([0, 2, 3])).with_columns({REWARD: [1.0, 1.0, 0.0]})
    after = sampler.observe(living, memory, context(2))["priority"]
    assert after[living[PROMPT_ID][0]] == 0.3
    assert after[living[PROMPT_ID][1]] > 0.3


def test_restored_memory_draws_the_same_batch(tmp_path):
    sampler = Prioritised(prompts=2, samples=2)
    batch, memory = sampler.draw(None, context(9))
    memory = sampler.observe(batch.with_columns({REWARD: [1.0, 0.0, 0.0, 0.0]}), memory, context(9))
    write_memory(memory, tmp_path)
    assert sampler.draw(read_memory(tmp_path), context(9))[0] == sampler.draw(memory, context(9))[0]
