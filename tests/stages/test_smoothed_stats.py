import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, PROMPT_ID, REWARD, SPREAD
from megatron_rl.ports import Context
from megatron_rl.stages.smoothed_stats import SmoothedStats

CONTEXT = Context(step=0, version=0, seed=0)


def visit(stage, memory, prompt, rewards):
    return stage(Batch.of({PROMPT_ID: [prompt] * len(rewards), REWARD: rewards}), memory, CONTEXT)


def test_the_worked_example_of_three_visits():
    stage, memory = SmoothedStats(alpha=0.5), None
    seen = []
    for rewards in ([1.0, 0, 0, 0], [1.0, 1, 0, 0], [1.0, 1, 1, 0]):
        batch, memory = visit(stage, memory, "x", rewards)
        seen.append((float(batch[BASELINE][0]), float((batch[SPREAD][0] - 1e-4) ** 2)))
    torch.testing.assert_close(
        torch.tensor(seen), torch.tensor([[0.25, 0.25], [0.375, 0.307292], [0.5625, 0.313802]]), atol=1e-5, rtol=0
    )


def test_a_constant_group_after_a_mixed_one_has_an_advantage():
    _, memory = visit(SmoothedStats(alpha=0.5), None, "x", [1.0, 0.0])
    batch, _ = visit(SmoothedStats(alpha=0.5), memory, "x", [1.0, 1.0])
    assert abs(float(((1 - batch[BASELINE]) / batch[SPREAD])[0]) - 0.447134) < 1e-6


def test_prompts_do_not_leak_into_one_another():
    stage = SmoothedStats(alpha=0.5)
    both = Batch.of({PROMPT_ID: ["x", "y", "x", "y"], REWARD: [1.0, 0.0, 1.0, 0.0]})
    _, together = stage(both, None, CONTEXT)
    _, alone = visit(stage, None, "x", [1.0, 1.0])
    assert together["x"] == alone["x"]


def test_the_previous_deviation_leaves_this_visit_out():
    _, memory = visit(SmoothedStats(alpha=0.5), None, "x", [1.0, 0.0])
    batch, _ = visit(SmoothedStats(alpha=0.5, deviation="previous"), memory, "x", [1.0, 1.0])
    assert abs(float(batch[SPREAD][0]) - (0.5**0.5 + 1e-4)) < 1e-9
