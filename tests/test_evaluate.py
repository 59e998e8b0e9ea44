import numpy as np

from megatron_rl.batch.columns import SOURCE
from megatron_rl.evaluate import HeldOut, measure
from megatron_rl.ops.logprobs import Sampling
from tests.fakes.tabular import FirstAnswerIsRight, NumberedPrompts, TabularEngine


def held_out(law, samples=4):
    engine = TabularEngine(6)
    engine.law = np.tile(np.array(law), (6, 1))
    return HeldOut(
        prompts=NumberedPrompts(6),
        engine=engine,
        judge=FirstAnswerIsRight(),
        samples=samples,
        sampling=Sampling(),
        seed=1,
    )


def test_a_policy_that_is_always_right_scores_one_with_doubt_left():
    metrics = held_out([1.0, 0.0, 0.0]).evaluate(step=7).metrics
    assert metrics["table/pass@1"] == metrics["table/pass@4"] == metrics["table/maj@4"] == 1.0
    assert 0.5 < metrics["table/pass@1/low"] < 0.7
    assert metrics["table/length_mean"] == 1.0


def test_the_same_policy_scores_the_same_at_every_evaluation():
    evaluator = held_out([0.5, 0.3, 0.2])
    assert evaluator.evaluate(step=1).metrics == evaluator.evaluate(step=9).metrics


def test_one_rollout_a_prompt_is_measured_by_pass_at_one_alone():
    names = held_out([0.5, 0.3, 0.2], samples=1).evaluate(step=0).metrics
    assert "table/pass@1" in names
    assert not any(name.startswith("table/maj") for name in names)


def test_sources_are_measured_apart():
    answers = held_out([1.0, 0.0, 0.0], samples=2).answer()
    halves = answers.with_columns({SOURCE: ["easy"] * 6 + ["hard"] * 6})
    metrics = measure(halves.with_columns(correct=[1] * 6 + [0] * 6), 2)
    assert (metrics["easy/pass@1"], metrics["hard/pass@1"]) == (1.0, 0.0)
