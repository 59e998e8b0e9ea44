import pytest
import torch

from megatron_rl.batch.columns import EPOCH, PROMPT_ID, TOKENS
from megatron_rl.ports import Context
from megatron_rl.stages.drafts.remember import Remember
from tests.fakes.chain_engine import MarkovEngine, random_law
from tests.stages.drafts.test_reuse import wave


def test_a_wave_replaces_the_drafts_of_its_prompts():
    engine = MarkovEngine(random_law(0))
    _, memory = wave(engine, None, 0)
    engine.law_VV = random_law(7)
    second, memory = wave(engine, memory, 1)
    assert len(memory["cache"]) == 12
    assert memory["cache"][TOKENS].values.tolist() == second[TOKENS].values.tolist()
    assert memory["waves"] == 2


def test_prompts_not_drawn_keep_their_drafts_until_they_are_too_old():
    engine = MarkovEngine(random_law(0))
    _, memory = wave(engine, None, 0)
    _, memory = wave(engine, memory, 2, prompts=2)
    assert sorted(set(memory["cache"][PROMPT_ID])) == ["p0", "p1", "p2", "p3"]
    _, memory = wave(engine, memory, 3, prompts=2)
    assert sorted(set(memory["cache"][PROMPT_ID])) == ["p0", "p1"]
    assert set(memory["cache"][EPOCH].tolist()) == {3}


def test_a_rollout_that_failed_and_so_is_not_seen_leaves_its_draft_as_it_was():
    engine = MarkovEngine(random_law(0))
    _, memory = wave(engine, None, 0)
    batch, _ = wave(engine, memory, 1)
    context = Context(step=1, version=0, seed=1, machines={"actor": engine, "engine": engine})
    _, memory = Remember()(batch.take(torch.arange(1, 12)), memory, context)
    assert sorted(memory["cache"][EPOCH].tolist()) == [0] + [1] * 11


def test_without_reuse_before_it_it_says_so():
    batch, _ = wave(MarkovEngine(random_law(0)), None, 0)
    with pytest.raises(TypeError, match=r"drafts\.reuse before it"):
        Remember()(batch, None, Context(step=0, version=0, seed=0))


def test_overlap_of_the_epochs_and_variety_within_groups_are_told():
    engine = MarkovEngine(random_law(0))
    first, memory = wave(engine, None, 0)
    second, _ = wave(engine, memory, 1)
    assert "drafts/overlap" not in first.metrics
    assert second.metrics["drafts/overlap"] == 1.0
    assert 1 / 3 <= second.metrics["drafts/distinct_share"] <= 1.0
