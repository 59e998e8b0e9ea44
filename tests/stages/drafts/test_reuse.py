import itertools
import math
from collections import Counter

import pytest
import torch

from megatron_rl.batch.columns import (
    DRAFT_LAW_LOGPROBS,
    DRAFT_LAW_TOKENS,
    DRAFT_WEIGHTS,
    EPOCH,
    FINISH,
    PHASE,
    PREFIX,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    REUSED,
    SAMPLER_LOGPROBS,
    SEED,
    TOKENS,
)
from megatron_rl.batch.memory import read_memory, write_memory
from megatron_rl.drawing import requests
from megatron_rl.ops.acceptance import output_law, sequence_law
from megatron_rl.ports import Context
from megatron_rl.stages.drafts.remember import Remember
from megatron_rl.stages.drafts.reuse import Reuse
from megatron_rl.stages.generate import Generate
from tests.fakes.chain_engine import MarkovEngine, random_law
from tests.fakes.tabular import NumberedPrompts


def wave(engine, memory, epoch, reuse=None, samples=3, prompts=4, first_group=0, change=lambda batch: batch):
    machines = {"engine": engine, "actor": engine, "prompts": NumberedPrompts(prompts)}
    context = Context(step=epoch, version=epoch, seed=1, machines=machines)
    picks = [(epoch, place) for place in range(prompts)]
    batch = change(requests(context, picks, samples, first_group=first_group + epoch * prompts))
    for stage in (reuse or Reuse(), Generate(), Remember()):
        batch, memory = (
            stage(batch, memory, context)
            if not isinstance(stage, Generate)
            else (stage(batch, None, context)[0], memory)
        )
    return batch, memory


def two_epochs(reuse, second_law=None, **rest):
    law = random_law(0)
    engine = MarkovEngine(law)
    first, memory = wave(engine, None, 0, reuse, **rest)
    engine.law_VV = law if second_law is None else second_law
    engine.asked, engine.decoded = [], 0
    second, memory = wave(engine, memory, 1, reuse, **rest)
    return first, second, engine


def test_the_first_epoch_is_an_ordinary_rollout():
    engine = MarkovEngine(random_law(0))
    batch, _ = wave(engine, None, 0)
    assert batch[REUSED].tolist() == [0] * 12
    assert engine.asked == [12]


@pytest.mark.parametrize("side", ["engine", "actor"])
def test_an_unchanged_policy_keeps_every_draft_and_asks_the_engine_nothing(side):
    first, second, engine = two_epochs(Reuse(log_lenience=0.0, side=side))
    assert engine.asked == []
    assert second[TOKENS].values.tolist() == first[TOKENS].values.tolist()
    assert second[FINISH] == first[FINISH]
    assert second.metrics["drafts/whole_share"] == 1.0


def test_what_is_kept_is_the_draft_bit_for_bit_and_the_rest_is_new():
    first, second, engine = two_epochs(Reuse(log_lenience=0.0), second_law=random_law(7))
    cuts = second[REUSED].tolist()
    assert 0 < sum(cuts) < len(first[TOKENS].values)
    for old, new, cut in zip(first[TOKENS].rows(), second[TOKENS].rows(), cuts, strict=True):
        assert old[:cut].tolist() == new[:cut].tolist()
        assert len(new) <= engine.max_tokens
    assert engine.decoded == len(second[TOKENS].values) - sum(cuts)


def test_log_probabilities_of_the_result_are_the_present_policys():
    _, second, engine = two_epochs(Reuse(log_lenience=0.5), second_law=random_law(7))
    torch.testing.assert_close(second[SAMPLER_LOGPROBS].values, engine.score(second).values)


def test_zero_lenience_is_an_ordinary_rollout_and_infinite_keeps_everything():
    _, nothing, engine = two_epochs(Reuse(log_lenience=-math.inf), second_law=random_law(7))
    fresh = MarkovEngine(random_law(7)).generate(nothing.without(PREFIX))
    assert nothing[REUSED].sum() == 0
    assert nothing[TOKENS].values.tolist() == fresh[TOKENS].values.tolist()
    first, everything, engine = two_epochs(Reuse(log_lenience=math.inf), second_law=random_law(7))
    assert engine.asked == []
    assert everything[TOKENS].values.tolist() == first[TOKENS].values.tolist()


def test_more_lenience_never_keeps_less():
    kept = [
        two_epochs(Reuse(log_lenience=given), second_law=random_law(7))[1][REUSED] for given in (-1.0, 0.0, 0.5, 1.0)
    ]
    assert all(bool((more >= less).all()) for less, more in itertools.pairwise(kept))


def test_two_tokens_have_the_joint_law_of_the_formula():
    old, new = random_law(0, stop_share=1e-9), random_law(7, stop_share=1e-9)
    engine = MarkovEngine(old, max_tokens=2)
    reuse = Reuse(log_lenience=0.2)
    _, memory = wave(engine, None, 0, reuse, samples=4000, prompts=1)
    engine.law_VV = new
    second, _ = wave(engine, memory, 1, reuse, samples=4000, prompts=1)
    pairs = Counter(tuple(row.tolist()) for row in second[TOKENS].rows())
    expected_VV = sequence_law((new[-1], new[:-1]), (old[-1], old[:-1]), math.exp(0.2)).joint_VV
    for a in range(1, 4):
        for b in range(1, 4):
            share = float(expected_VV[a, b])
            assert abs(pairs[a, b] / 4000 - share) < 5 * math.sqrt(share * (1 - share) / 4000) + 1e-3


def law_of_the_first_token(reuse, old, new, samples=2000):
    """Shares of the tokens that a rollout with a draft begins with."""
    engine = MarkovEngine(old, max_tokens=1)
    _, memory = wave(engine, None, 0, reuse, samples=samples, prompts=1)
    engine.law_VV = new
    second, _ = wave(engine, memory, 1, reuse, samples=samples, prompts=1)
    return torch.bincount(second[TOKENS].values.long(), minlength=4) / samples


def within_noise(shares, law, samples=2000):
    return bool(((shares - law).abs() < 5 * (law * (1 - law) / samples).sqrt() + 1e-4).all())


@pytest.mark.parametrize("lenience", [0.4, 1.0, math.exp(0.5), 3.0])
def test_a_verified_token_has_the_law_m_plus_the_missing_mass_of_p(lenience):
    old, new = random_law(0), random_law(7)
    shares = law_of_the_first_token(Reuse(log_lenience=math.log(lenience)), old, new)
    kept = torch.minimum(old[-1], lenience * new[-1])
    assert within_noise(shares, kept + (1 - kept.sum()) * new[-1])


@pytest.mark.parametrize(("laws", "log_lenience"), [(0, 0.0), (2, 0.0), (1, -0.5)])
def test_exact_reuse_leaves_the_law_of_a_token_the_present_policys_however_little_is_kept(laws, log_lenience):
    old, new = random_law(0), random_law(7)
    # The test would see the vanilla rule's law.
    assert not within_noise(output_law(new[-1], old[-1], 1.0).output_V, new[-1])
    shares = law_of_the_first_token(Reuse(log_lenience=log_lenience, laws=laws), old, new)
    assert within_noise(shares, new[-1])


def test_exact_reuse_leaves_the_joint_law_of_two_tokens_alone_too():
    old, new = random_law(0, stop_share=1e-9), random_law(7, stop_share=1e-9)
    engine, reuse = MarkovEngine(old, max_tokens=2), Reuse(log_lenience=0.0, laws=2)
    _, memory = wave(engine, None, 0, reuse, samples=2000, prompts=1)
    engine.law_VV = new
    second, _ = wave(engine, memory, 1, reuse, samples=2000, prompts=1)
    pairs = torch.stack([row.long() for row in second[TOKENS].rows()])
    shares = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16) / 2000
    law = (new[-1][:, None] * new[:-1]).flatten()
    assert within_noise(shares[4:], law[4:], samples=2000)
    assert 0 < second[REUSED].sum() < 4000


def test_a_draft_of_the_present_version_is_none_since_the_same_rollout_would_come_twice():
    engine = MarkovEngine(random_law(0))
    first, memory = wave(engine, None, 0)
    again, _ = wave(engine, memory, 0, first_group=4)
    assert again[REUSED].sum() == 0
    assert again[TOKENS].values.tolist() != first[TOKENS].values.tolist()


def test_a_budget_smaller_than_the_draft_cuts_its_laws_too():
    engine, reuse = MarkovEngine(random_law(0, stop_share=0.01)), Reuse(log_lenience=0.0, laws=0)
    _, memory = wave(engine, None, 0, reuse)
    engine.max_tokens = 4
    second, memory = wave(engine, memory, 1, reuse)
    assert second[TOKENS].length_B.max() == 4
    assert memory["cache"][DRAFT_LAW_TOKENS].length_B.tolist() == (4 * second[TOKENS].length_B).tolist()


@pytest.mark.parametrize("top", [0, 2])
def test_drafts_hold_the_laws_that_the_engine_shows_of_the_whole_response(top):
    engine, reuse = MarkovEngine(random_law(0)), Reuse(log_lenience=0.0, laws=top)
    _, memory = wave(engine, None, 0, reuse)
    engine.law_VV = random_law(7)
    second, memory = wave(engine, memory, 1, reuse)
    assert 0 < second[REUSED].sum() < len(second[TOKENS].values)
    shown = engine.laws(second, top)
    assert memory["cache"][DRAFT_LAW_TOKENS].values.tolist() == shown.tokens.values.tolist()
    assert memory["cache"][DRAFT_LAW_LOGPROBS].values.tolist() == shown.logprobs.values.tolist()
    assert DRAFT_LAW_TOKENS not in second


def test_exact_reuse_keeps_every_draft_of_an_unchanged_policy():
    first, second, engine = two_epochs(Reuse(log_lenience=0.0, laws=0))
    assert engine.asked == []
    assert second[TOKENS].values.tolist() == first[TOKENS].values.tolist()


def test_log_probabilities_after_exact_reuse_are_the_present_policys():
    _, second, engine = two_epochs(Reuse(log_lenience=0.0, laws=2), second_law=random_law(7))
    torch.testing.assert_close(second[SAMPLER_LOGPROBS].values, engine.score(second).values)


@pytest.mark.parametrize("wrong", [{"log_lenience": 0.5}, {"log_lenience": 0.0, "side": "actor"}])
def test_exact_reuse_that_cannot_be_exact_is_refused(wrong):
    with pytest.raises(ValueError, match="exact reuse needs"):
        Reuse(laws=8, **wrong)


def test_kept_tokens_carry_the_weights_that_restore_the_law_in_expectation():
    old, new, lenience = random_law(0), random_law(7), math.exp(0.5)
    engine, reuse = MarkovEngine(old, max_tokens=1), Reuse(log_lenience=0.5)
    _, memory = wave(engine, None, 0, reuse, samples=4000, prompts=1)
    engine.law_VV = new
    second, _ = wave(engine, memory, 1, reuse, samples=4000, prompts=1)
    weights = torch.ones(4000, dtype=torch.float64)
    kept = second[DRAFT_WEIGHTS].length_B > 0
    assert kept.tolist() == (second[REUSED] > 0).tolist()
    weights[kept] = second[DRAFT_WEIGHTS].values.double()
    token_N = second[TOKENS].values.long()
    shares = torch.zeros(4, dtype=torch.float64).index_add(0, token_N, weights) / 4000
    # m a max(p/q, 1/l) = a p on every token, and (1 - a) p of fresh ones: together p.
    torch.testing.assert_close(shares, new[-1], atol=0.04, rtol=0)
    plain = torch.bincount(token_N, minlength=4) / 4000
    assert float((plain - new[-1]).abs().max()) > 0.03
    assert lenience > 1


def test_drafts_expire_and_other_templates_and_phases_find_none():
    changes = (
        lambda batch: batch.with_columns({EPOCH: [epoch * 5 for epoch in batch[EPOCH].tolist()]}),
        lambda batch: batch.with_columns({PHASE: ["screen"] * len(batch)}),
        lambda batch: batch.with_columns({PROMPT_TOKENS: [[1, epoch, 2] for epoch in batch[EPOCH].tolist()]}),
    )
    for change in changes:
        _, second, engine = two_epochs(Reuse(), change=change)
        assert second[REUSED].sum() == 0
        assert engine.asked == [12]


def test_another_temperature_starts_without_drafts():
    engine = MarkovEngine(random_law(0))
    _, memory = wave(engine, None, 0)
    assert wave(engine, {**memory, "law": "Sampling(temperature=0.5)"}, 1)[0][REUSED].sum() == 0


def test_two_groups_of_one_prompt_do_not_share_a_draft():
    engine = MarkovEngine(random_law(0))

    def twice(batch):
        return batch.with_columns(prompt_id=["same"] * len(batch), prompt_tokens=[[1]] * len(batch))

    first, memory = wave(engine, None, 0, change=twice)
    second, _ = wave(engine, memory, 1, change=twice)
    assert [row.tolist() for row in second[TOKENS].rows()] == [row.tolist() for row in first[TOKENS].rows()]
    assert len(set(first[SEED].tolist())) == 12


def test_a_save_between_epochs_changes_no_cut(tmp_path):
    engine = MarkovEngine(random_law(0))
    _, memory = wave(engine, None, 0)
    write_memory(memory, tmp_path)
    engine.law_VV = random_law(7)
    straight, _ = wave(engine, memory, 1)
    resumed, _ = wave(engine, read_memory(tmp_path), 1)
    assert resumed == straight


def test_other_steps_use_other_noise():
    law, engine = random_law(7), MarkovEngine(random_law(0))
    _, memory = wave(engine, None, 0)
    engine.law_VV = law
    context = {"machines": {"engine": engine, "actor": engine, "prompts": NumberedPrompts(4)}, "version": 1, "seed": 1}
    asked = requests(Context(step=1, **context), [(1, place) for place in range(4)], 3, first_group=9)
    cuts = [
        Reuse(log_lenience=0.0)(asked, memory, Context(step=step, **context))[0][REUSED].tolist()
        for step in range(1, 6)
    ]
    assert len({tuple(cut) for cut in cuts}) > 1


def test_a_draft_clipped_by_a_smaller_budget_is_read_anew_by_the_engine():
    engine = MarkovEngine(random_law(0, stop_share=0.01))
    _, memory = wave(engine, None, 0)
    engine.max_tokens = 4
    second, _ = wave(engine, memory, 1)
    assert second[TOKENS].length_B.max() == 4
    assert all(
        len(text.split()) == len(row) for text, row in zip(second[RESPONSE_TEXT], second[TOKENS].rows(), strict=True)
    )


def test_lenient_reuse_of_screening_rollouts_is_refused():
    with pytest.raises(ValueError, match="lenient screening"):
        Reuse(phases=("screen", "train"), log_lenience=0.5)
