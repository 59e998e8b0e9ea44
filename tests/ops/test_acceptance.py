"""What speculative rollouts keep, and which law results: exact only where it is claimed to be."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops import acceptance
from megatron_rl.ops.acceptance import Drafts, accepted, assemble, output_law, sequence_law, total_variation, verify

NEW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
OLD = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
DRAWS = 200_000


def random_drafts(seed, rows=20, same=False):
    torch.manual_seed(seed)
    length_B = torch.randint(0, 9, (rows,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length_B.cumsum(0)])
    old_T = -torch.rand(int(offsets[-1]), dtype=torch.float64) * 3
    new_T = old_T.clone() if same else -torch.rand(int(offsets[-1]), dtype=torch.float64) * 3
    uniform_T = torch.rand(int(offsets[-1]), dtype=torch.float64)
    return Drafts(new_T, old_T, offsets, torch.ones(rows, dtype=torch.bool)), uniform_T


@pytest.mark.parametrize("log_lenience", [0.0, 0.5, math.inf])
def test_an_unchanged_policy_keeps_every_draft_whole(log_lenience):
    drafts, _ = random_drafts(0, same=True)
    verdict = verify(drafts, torch.ones_like(drafts.new_logprob_T), log_lenience, 100)
    assert torch.equal(verdict.cut_B, drafts.offsets.diff())
    assert not verdict.needs_generation_B.any()
    assert (verdict.reused_fraction, verdict.full_reuse_fraction) == (1.0, 1.0)


def test_the_cut_grows_with_lenience():
    drafts, uniform_T = random_drafts(1)
    ladder = (-math.inf, -2.0, -0.5, 0.0, 0.3, 1.0, 5.0, math.inf)
    cuts = [verify(drafts, uniform_T, rung, 100).cut_B for rung in ladder]
    assert all(bool((less <= more).all()) for less, more in pairwise(cuts))


def test_the_cut_shrinks_as_the_uniforms_grow():
    drafts, uniform_T = random_drafts(2)
    cuts = [verify(drafts, uniform_T * factor, 0.0, 100).cut_B for factor in (0.01, 0.3, 0.7, 1.0)]
    assert all(bool((more >= less).all()) for more, less in pairwise(cuts))


@pytest.mark.parametrize("log_lenience", [-math.inf, -1e4])
def test_no_lenience_is_an_ordinary_rollout(log_lenience):
    drafts, uniform_T = random_drafts(3)
    drafts = drafts._replace(finished_B=torch.zeros_like(drafts.finished_B))
    verdict = verify(drafts, uniform_T, log_lenience, 12)
    assert verdict.cut_B.sum() == 0
    assert verdict.budget_B.tolist() == [12] * 20


def test_a_rollout_without_a_draft_is_an_ordinary_request():
    nothing_T = torch.zeros(0, dtype=torch.float64)
    drafts = Drafts(nothing_T, nothing_T, torch.tensor([0, 0]), torch.tensor([False]))
    verdict = verify(drafts, nothing_T, 0.5, 8)
    assert (verdict.needs_generation_B.tolist(), verdict.budget_B.tolist()) == ([True], [8])
    assert verdict.reused_fraction == 0.0


def test_impossible_tokens_are_rejected_unless_everything_is_kept():
    inf = math.inf
    new_T, old_T = torch.tensor([-inf, -inf, -1.0, -1.0]), torch.tensor([-1.0, -inf, -inf, -1.0])
    uniform_T = torch.zeros(4)
    assert accepted(new_T, old_T, uniform_T, 30.0).tolist() == [False, False, True, True]
    assert accepted(new_T, old_T, uniform_T, inf).tolist() == [True] * 4
    assert accepted(new_T, old_T, uniform_T, -inf).tolist() == [False] * 4


@pytest.mark.parametrize(
    ("finished", "limit", "needs", "budget"),
    [(True, 5, False, 0), (False, 5, True, 2), (False, 3, False, 0), (False, 2, False, 0), (True, 2, False, 0)],
)
def test_a_kept_draft_goes_on_only_if_unfinished_and_short(finished, limit, needs, budget):
    logprob_T = torch.full((3,), -1.0)
    drafts = Drafts(logprob_T, logprob_T, torch.tensor([0, 3]), torch.tensor([finished]))
    verdict = verify(drafts, torch.rand(3), 0.0, limit)
    assert verdict.cut_B.item() == min(3, limit)
    assert (verdict.needs_generation_B.item(), verdict.budget_B.item()) == (needs, budget)


def simulated_law(new_V, old_V, lenience, after_rejection_V):
    generator = torch.Generator().manual_seed(0)
    draft_N = torch.multinomial(old_V, DRAWS, replacement=True, generator=generator)
    fresh_N = torch.multinomial(after_rejection_V, DRAWS, replacement=True, generator=generator)
    uniform_N = torch.rand(DRAWS, generator=generator, dtype=torch.float64)
    keep_N = accepted(new_V.log()[draft_N], old_V.log()[draft_N], uniform_N, math.log(lenience))
    return torch.where(keep_N, draft_N, fresh_N), keep_N


def frequency(token_N):
    return torch.bincount(token_N, minlength=3) / len(token_N)


@pytest.mark.parametrize("lenience", [0.4, 1.0, 1.65, 3.0])
def test_the_produced_token_has_the_stated_law(lenience):
    token_N, keep_N = simulated_law(NEW, OLD, lenience, NEW)
    law = output_law(NEW, OLD, lenience)
    assert_close(frequency(token_N).double(), law.output_V, atol=0.005, rtol=0)
    assert float(keep_N.double().mean()) == pytest.approx(float(law.accept_probability), abs=0.005)


def test_lenience_one_is_not_exact_and_the_residual_law_is():
    assert float(total_variation(output_law(NEW, OLD, 1.0).output_V, NEW)) == pytest.approx(0.15)
    assert_close(acceptance.exact_output_law(NEW, OLD).output_V, NEW)
    token_N, _ = simulated_law(NEW, OLD, 1.0, acceptance.residual_law(NEW, OLD))
    assert_close(frequency(token_N).double(), NEW, atol=0.005, rtol=0)


@pytest.mark.parametrize("lenience", [0.1, 0.4, 0.9])
def test_an_unchanged_policy_stays_exact_below_lenience_one(lenience):
    assert_close(output_law(OLD, OLD, lenience).output_V, OLD)


def test_small_lenience_is_exact_and_large_lenience_returns_the_old_law():
    assert_close(output_law(NEW, OLD, float((OLD / NEW).min())).output_V, NEW)
    assert_close(output_law(NEW, OLD, 3.0).output_V, OLD)
    assert_close(output_law(NEW, OLD, math.inf).output_V, OLD)


def test_the_residual_of_equal_laws_is_the_law():
    assert_close(acceptance.residual_law(NEW, NEW), NEW)


def test_the_correction_restores_the_present_law():
    lenience, law = 1.3, output_law(NEW, OLD, 1.3)
    kept_V = acceptance.kept_mass(NEW, OLD, lenience)
    fresh_V = (1 - law.accept_probability) * NEW
    weight_V = acceptance.reuse_correction(
        (NEW / OLD).log(), torch.ones(3), math.log(lenience), float(law.accept_probability)
    )
    assert_close(kept_V * weight_V + fresh_V, NEW)


def test_two_tokens_have_the_stated_joint_law():
    torch.manual_seed(4)
    new_VV, old_VV = (torch.rand(3, 3, dtype=torch.float64).softmax(-1) for _ in range(2))
    law = sequence_law((NEW, new_VV), (OLD, old_VV), 1.2)
    first_N, keep_first_N = simulated_law(NEW, OLD, 1.2, NEW)
    draft_N = torch.multinomial(old_VV[first_N], 1).squeeze(1)
    uniform_N = torch.rand(DRAWS, dtype=torch.float64)
    new_N, old_N = new_VV.log()[first_N, draft_N], old_VV.log()[first_N, draft_N]
    keep_N = keep_first_N & accepted(new_N, old_N, uniform_N, math.log(1.2))
    second_N = torch.where(keep_N, draft_N, torch.multinomial(new_VV[first_N], 1).squeeze(1))
    seen_VV = torch.bincount(first_N * 3 + second_N, minlength=9).view(3, 3).double() / DRAWS
    assert_close(seen_VV, law.joint_VV, atol=0.005, rtol=0)
    assert float((keep_first_N.double() + keep_N.double()).mean()) == pytest.approx(float(law.expected_cut), abs=0.01)
    assert_close(law.joint_VV.sum().item(), 1.0)


def test_the_expected_prefix_is_what_verification_keeps():
    chance_T = torch.tensor([0.9, 0.8, 1.0, 0.5], dtype=torch.float64)
    uniform_NT = torch.rand(DRAWS, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept_N = (uniform_NT < chance_T).long().cumprod(1).sum(1)
    prefix = acceptance.expected_prefix(chance_T)
    assert float(kept_N.double().mean()) == pytest.approx(float(prefix.cut), abs=0.02)
    assert float((kept_N == 4).double().mean()) == pytest.approx(float(prefix.full_reuse_probability), abs=0.01)
    assert float(acceptance.expected_prefix(torch.zeros(0)).cut) == 0


def test_the_assembled_response_keeps_the_draft_and_the_budget():
    prompt = torch.tensor([11, 12, 13]), torch.tensor([0, 2, 3])
    draft = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 3, 5])
    suffix = torch.tensor([7, 8, 9, 9, 9]), torch.tensor([0, 1, 5])
    made = assemble(prompt, draft, torch.tensor([3, 1]), suffix, 4)
    assert [part.tolist() for part in made.context] == [[11, 12, 1, 2, 3, 13, 4], [0, 5, 7]]
    assert [part.tolist() for part in made.response] == [[1, 2, 3, 7, 4, 8, 9, 9], [0, 4, 8]]
    assert made.reused_T.tolist() == [1, 1, 1, 0, 1, 0, 0, 0]


def test_a_residual_token_and_an_accepted_one_together_have_the_present_law_also_where_little_of_the_old_is_known():
    known = OLD.clone()
    known[2:] = 0.0
    for lenience in (1.0, 0.6):
        kept = acceptance.kept_mass(NEW, known, lenience)
        assert_close(kept + (1 - kept.sum()) * acceptance.residual_law(NEW, known, lenience), NEW)


def test_residual_tokens_are_drawn_by_inversion():
    law_NV = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    uniform_N = torch.tensor([0.6, 0.999], dtype=torch.float64)
    assert acceptance.draw_residual(law_NV, torch.zeros_like(law_NV), uniform_N, 1.0).tolist() == [1, 2]


def test_a_token_outside_the_known_part_of_the_old_law_is_rejected_whatever_its_odds():
    one = torch.zeros(2, dtype=torch.float64)
    drafts = acceptance.Drafts(one, one, torch.tensor([0, 2]), torch.tensor([True]), torch.tensor([True, False]))
    assert acceptance.verify(drafts, one, 0.0, 8).cut_B.tolist() == [1]


def test_acceptance_is_the_lenient_ratio_up_to_one():
    ratio_T = torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64).log()
    assert_close(acceptance.acceptance(ratio_T, 0.0), torch.tensor([0.25, 1.0, 1.0], dtype=torch.float64))
    assert_close(acceptance.acceptance(ratio_T, math.log(2)), torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64))
    assert acceptance.acceptance(ratio_T, math.inf).tolist() == [1.0, 1.0, 1.0]
