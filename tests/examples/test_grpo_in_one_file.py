"""The tutorial runs, learns, and computes what the library's own stages compute."""

import pytest
import torch
from safetensors.torch import load_file

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, ANSWER, FINISH, GROUP, RESPONSE_TEXT, REWARD, TOKENS
from megatron_rl.ports import Context
from megatron_rl.stages.advantage import Advantage
from megatron_rl.stages.group_baseline import GroupBaseline
from tests.test_own_algorithm import EXAMPLE

CONTEXT = Context(step=0, version=0, seed=0)


@pytest.fixture
def tutorial(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import grpo_in_one_file

    threads = torch.get_num_threads()
    yield grpo_in_one_file
    torch.set_num_threads(threads)


def test_three_steps_change_the_weights_and_are_repeatable(tutorial, tmp_path, capsys):
    sizes = ["--steps", "3", "--prompts", "4", "--samples", "4", "--warm-steps", "40"]
    once, again = (tutorial.main([*sizes, "--folder", str(tmp_path / name)]) for name in ("once", "again"))
    assert len(once) == 3
    for told in once:
        assert 0 <= told.reward <= 1
        assert 0 <= told.mixed <= 1
        assert told.gap < 1e-5
    assert [(told.reward, told.length, told.clipped) for told in once] == [
        (told.reward, told.length, told.clipped) for told in again
    ]
    start, trained = (load_file(tmp_path / "once" / name / "model.safetensors") for name in ("start", "trained"))
    assert start.keys() == trained.keys()
    assert any(not torch.equal(start[name], trained[name]) for name in start)
    assert capsys.readouterr().out.count("engine-actor gap") == 2


@pytest.mark.slow
def test_the_reward_rises(tutorial):
    history = tutorial.main([])
    rewards = [told.reward for told in history]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:3]) / 3 + 0.3


def test_its_advantages_are_those_of_the_stages(tutorial):
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    marked = Batch.of({GROUP: [0, 0, 0, 0, 1, 1, 2, 2], REWARD: rewards, TOKENS: [[5] * (n % 3 + 1) for n in range(8)]})
    batch, _ = GroupBaseline(eps=tutorial.EPS)(marked, None, CONTEXT)
    batch, _ = Advantage()(batch, None, CONTEXT)
    ours, theirs = tutorial.compare(marked).ragged(ADVANTAGE), batch.ragged(ADVANTAGE)
    assert torch.equal(ours.values, theirs.values)
    assert torch.equal(ours.offsets, theirs.offsets)


def test_only_a_finished_right_answer_is_rewarded(tutorial):
    said = [("<answer> 5", "stop"), ("<answer> 5", "length"), ("<answer> 6", "stop"), ("5", "stop"), ("", "stop")]
    rollouts = Batch.of(
        {RESPONSE_TEXT: [text for text, _ in said], FINISH: [finish for _, finish in said], ANSWER: ["5"] * len(said)}
    )
    assert tutorial.mark(rollouts).numbers(REWARD).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_help_tells_what_it_is(tutorial, capsys):
    with pytest.raises(SystemExit) as ended:
        tutorial.main(["--help"])
    assert ended.value.code == 0
    assert "GRPO in one file" in capsys.readouterr().out
