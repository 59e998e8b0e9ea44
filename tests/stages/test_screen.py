import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, GROUP, KEPT, LOSS_MASK, PHASE, SLOT
from megatron_rl.ports import Context
from megatron_rl.stages.screen import Screen

CONTEXT = Context(step=0, version=0, seed=0)


def wave(phase, groups, correct):
    samples = len(correct) // len(groups)
    first = 0 if phase == "screen" else 2
    return Batch.of(
        {
            GROUP: [group for group in groups for _ in range(samples)],
            SLOT: list(range(first, first + samples)) * len(groups),
            PHASE: [phase] * len(correct),
            CORRECT: correct,
            LOSS_MASK: [[1, 1]] * len(correct),
        }
    )


@pytest.mark.parametrize("wrong", [{"low": 0.9, "high": 0.1}, {"low": 1.0, "high": 2.0}, {"low": -1.0, "high": 0.0}])
def test_thresholds_that_nothing_passes_are_refused(wrong):
    with pytest.raises(ValueError, match="between which no pass rate lies"):
        Screen(**wrong)
    assert Screen(low=-1.0, high=2.0)  # everything passes


def test_only_mixed_prompts_wait_and_the_others_pass_marked_as_dropped():
    passed, memory = Screen()(wave("screen", [0, 1, 2], [1, 0, 0, 0, 1, 1]), None, CONTEXT)
    assert memory["pending"][GROUP].tolist() == [0, 0]
    assert passed[GROUP].tolist() == [1, 1, 2, 2]
    assert passed[KEPT].tolist() == [0, 0, 0, 0]
    assert passed.metrics["screen/accepted_share"] == 1 / 3


def test_a_continued_prompt_leaves_as_one_whole_group():
    _, memory = Screen()(wave("screen", [0], [1, 0]), None, CONTEXT)
    passed, memory = Screen()(wave("continue", [0], [1, 1, 0]), memory, CONTEXT)
    assert passed[SLOT].tolist() == [0, 1, 2, 3, 4]
    assert passed[KEPT].tolist() == [1] * 5
    assert memory["pending"] is None


def test_with_continuation_only_in_the_loss_screening_tokens_are_not_live():
    stage = Screen(loss_rollouts="continuation")
    _, memory = stage(wave("screen", [0], [1, 0]), None, CONTEXT)
    passed, _ = stage(wave("continue", [0], [1, 1, 0]), memory, CONTEXT)
    assert passed[LOSS_MASK].values.view(5, 2).sum(1).tolist() == [0, 0, 2, 2, 2]


def test_the_bounds_are_strict():
    screened = wave("screen", [0, 1], [1, 1, 0, 0, 1, 0, 0, 0])
    _, memory = Screen(low=0.25, high=0.75)(screened, None, CONTEXT)
    assert memory["pending"][GROUP].tolist() == [0] * 4
    assert torch.equal(memory["pending"][CORRECT], torch.tensor([1, 1, 0, 0], dtype=torch.uint8))


def test_one_wave_completes_some_prompts_and_screens_others():
    _, memory = Screen()(wave("screen", [4, 2], [1, 0, 0, 1]), None, CONTEXT)
    screened, continued = wave("screen", [7, 8], [0, 1, 1, 1]), wave("continue", [4, 2], [1, 1, 0, 0])
    passed, memory = Screen()(Batch.concat([screened, continued]), memory, CONTEXT)
    assert passed[GROUP].tolist() == [4] * 4 + [2] * 4 + [8] * 2
    assert passed[SLOT].tolist() == [0, 1, 2, 3] * 2 + [0, 1]
    assert passed[KEPT].tolist() == [1] * 8 + [0] * 2
    assert memory["pending"][GROUP].tolist() == [7, 7]
    assert passed.metrics["screen/continued_mean"] == 0.5


def test_of_prompts_with_failed_rollouts_the_living_ones_decide():
    judged = wave("screen", [0, 1, 2], [1, 0, 1, 1, 0, 0, 1, 0, 0]).take(torch.tensor([0, 1, 4, 5]))
    passed, memory = Screen()(judged, None, CONTEXT)
    assert (memory["pending"][GROUP].tolist(), memory["screened"]) == ([0, 0], 2)
    assert (passed[GROUP].tolist(), passed[KEPT].tolist()) == ([1, 1], [0, 0])
    passed, memory = Screen()(wave("continue", [0], [1]), memory, CONTEXT)
    assert (passed[GROUP].tolist(), memory["screened"]) == ([0, 0, 0], 2)


def test_a_prompt_of_whose_continuation_nothing_came_back_waits_on():
    _, memory = Screen()(wave("screen", [4, 2], [1, 0, 0, 1]), None, CONTEXT)
    both = Batch.concat([wave("continue", [2], [1, 1]), wave("screen", [5], [1, 0])])
    passed, memory = Screen()(both, memory, CONTEXT)
    assert passed[GROUP].tolist() == [2] * 4
    assert memory["pending"][GROUP].tolist() == [4, 4, 5, 5]
    assert passed.metrics["screen/pending"] == 2
    passed, memory = Screen()(wave("screen", [6], [1, 0]), memory, CONTEXT)
    assert (len(passed), memory["pending"][GROUP].tolist()) == (0, [4, 4, 5, 5, 6, 6])
    passed, memory = Screen()(wave("continue", [4, 5, 6], [1, 1, 1]), memory, CONTEXT)
    assert (passed[GROUP].tolist(), memory["pending"]) == ([4] * 3 + [5] * 3 + [6] * 3, None)


def test_rejected_rollouts_keep_their_mask_when_those_of_accepted_prompts_lose_it():
    stage = Screen(loss_rollouts="continuation")
    _, memory = stage(wave("screen", [0], [1, 0]), None, CONTEXT)
    both = Batch.concat([wave("continue", [0], [1]), wave("screen", [1], [0, 0])])
    passed, _ = stage(both, memory, CONTEXT)
    assert passed[LOSS_MASK].values.view(5, 2).sum(1).tolist() == [0, 0, 2, 2, 2]
