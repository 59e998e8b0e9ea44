from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_rl.batch.columns import CORRECT, PROMPT_ID, SLOT, SOURCE
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


class FailsSome(TabularEngine):
    """Gives back none of the answers to these prompts but the first ones."""

    def __init__(self, **kept):
        super().__init__(6)
        self.kept = kept

    def generate(self, batch, sampling=None):
        answers = super().generate(batch, sampling)
        slots = zip(answers[PROMPT_ID], answers[SLOT].tolist(), strict=True)
        return answers.where(torch.tensor([slot < self.kept.get(name, 99) for name, slot in slots]))


def test_answers_that_failed_are_left_out_and_counted():
    whole, some = held_out([0.5, 0.3, 0.2]), held_out([0.5, 0.3, 0.2])
    engine = FailsSome(p0=0, p3=1)
    engine.law = some.engine.law
    found = replace(some, engine=engine).evaluate(step=0).metrics
    assert (found["table/failed"], found["table/short_prompts"]) == (7, 2)
    answers = whole.answer()
    mean = {name: right.mean() for name, right in _right_by_prompt(answers).items()}
    mean["p3"] = _right_by_prompt(answers)["p3"][0]
    assert found["table/pass@1"] == pytest.approx(np.mean([value for name, value in mean.items() if name != "p0"]))
    rest = [right.any() for name, right in _right_by_prompt(answers).items() if name not in ("p0", "p3")]
    assert found["table/pass@4"] == pytest.approx(np.mean(rest))
    assert found["table/length_mean"] == 1.0
    assert whole.evaluate(step=0).metrics["table/failed"] == whole.evaluate(step=0).metrics["table/short_prompts"] == 0


def test_where_no_prompt_has_all_its_answers_there_is_no_pass_at_k():
    some = held_out([0.5, 0.3, 0.2])
    found = replace(some, engine=FailsSome(**{f"p{number}": 3 for number in range(6)})).evaluate(step=0).metrics
    assert found["table/short_prompts"] == 6
    assert not any("@4" in name for name in found)


def test_an_evaluation_of_which_nothing_came_back_is_an_error_with_the_reason():
    some = held_out([0.5, 0.3, 0.2])
    with pytest.raises(RuntimeError, match=r"none of the 24 answers .* of 'table' .*was not given back"):
        replace(some, engine=FailsSome(**{f"p{number}": 0 for number in range(6)})).evaluate(step=0)


def _right_by_prompt(answers):
    names = np.array(answers[PROMPT_ID])
    return {name: answers[CORRECT].numpy()[names == name] for name in dict.fromkeys(names.tolist())}


def test_sources_are_measured_apart():
    answers = held_out([1.0, 0.0, 0.0], samples=2).answer()
    halves = answers.with_columns({SOURCE: ["easy"] * 6 + ["hard"] * 6})
    metrics = measure(halves.with_columns(correct=[1] * 6 + [0] * 6), 2)
    assert (metrics["easy/pass@1"], metrics["hard/pass@1"]) == (1.0, 0.0)
