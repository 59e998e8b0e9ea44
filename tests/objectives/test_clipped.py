import math

import pytest
import torch

from megatron_rl.batch.columns import (
    ADVANTAGE,
    LOSS_WEIGHT,
    OLD_LOGPROBS,
    REFERENCE_LOGPROBS,
    REUSED,
    SAMPLER_LOGPROBS,
)
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.spec.schema import SpecError
from tests.fakes.priced_tokens import counts_of, part, random_tokens, slope, tokens_of

LOG2 = math.log(2.0)


def one_row(ratios, advantage, more=None):
    """A rollout whose tokens became `ratios` times as likely."""
    logprobs_T = torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64).requires_grad_()
    T = len(ratios)
    columns = {
        ADVANTAGE: torch.full((T,), float(advantage), dtype=torch.float64),
        OLD_LOGPROBS: torch.zeros(T, dtype=torch.float64),
        LOSS_WEIGHT: torch.ones(1, dtype=torch.float64),
        **(more or {}),
    }
    mask_T = torch.ones(T, dtype=torch.uint8)
    return tokens_of([T], logprobs_T, mask_T, columns, torch.full((T,), 0.5, dtype=torch.float64))


def price(objective, tokens):
    return float(objective.price(tokens, counts_of(tokens)).loss)


def test_a_likelier_good_token_pays_and_pulls_only_up_to_the_clip():
    tokens = one_row([1.1, 2.0], advantage=1.0)
    priced, gradient_T = slope(Clipped(), tokens, counts_of(tokens))
    assert float(priced.loss) == pytest.approx(-(1.1 + 1.2) / 2)
    assert gradient_T.tolist() == pytest.approx([-1.1 / 2, 0.0])
    assert float(priced.metrics["clip_fraction"]) == 0.5


def test_the_upper_clip_is_its_own_number():
    assert price(Clipped(high=0.28), one_row([2.0], advantage=1.0)) == pytest.approx(-1.28)


def test_dual_clip_bounds_the_price_of_a_likelier_bad_token_and_stops_its_gradient():
    tokens = one_row([8.0], advantage=-1.0)
    priced, gradient_T = slope(Clipped(dual_clip=3.0), tokens, counts_of(tokens))
    assert float(priced.loss) == pytest.approx(3.0)
    assert gradient_T.tolist() == [0.0]
    assert price(Clipped(dual_clip=None), tokens) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", (1 + 1 + 1 + 5) / 4),
        ("seq-mean-token-mean", (1 + 5) / 2),
        ("seq-mean-token-sum", (3 + 5) / 2),
        ("seq-mean-token-sum-norm", (3 + 5) / 2 / 10),
        ("token-sum", 8),
    ],
)
def test_aggregations_divide_by_what_their_names_say(aggregation, expected):
    columns = {
        ADVANTAGE: torch.tensor([-1.0, -1.0, -1.0, -5.0, -9.0]),
        OLD_LOGPROBS: torch.zeros(5),
        LOSS_WEIGHT: torch.ones(3),
    }
    mask_T = torch.tensor([1, 1, 1, 1, 0], dtype=torch.uint8)
    tokens = tokens_of([3, 1, 1], torch.zeros(5), mask_T, columns, torch.zeros(5))
    max_response = 10 if aggregation.endswith("norm") else None
    assert price(Clipped(aggregation=aggregation, max_response=max_response), tokens) == pytest.approx(expected)


def test_the_constant_is_the_response_budget_unless_it_was_given():
    assert Clipped(aggregation="seq-mean-token-sum-norm").within(56).max_response == 56
    assert Clipped(aggregation="seq-mean-token-sum-norm", max_response=10).within(56).max_response == 10
    assert Clipped().within(56) == Clipped()


def test_loss_weight_multiplies_every_token_of_its_rollout():
    tokens = one_row([1.0, 1.0], advantage=2.0)
    tokens.columns["loss_weight"].fill_(3.0)
    assert price(Clipped(), tokens) == pytest.approx(-6.0)


@pytest.mark.parametrize(
    ("estimator", "value", "slope_at"),
    [
        ("k1", LOG2, 1.0),
        ("k2", LOG2**2 / 2, LOG2),
        ("k3", 0.5 + LOG2 - 1, 1 - 0.5),
        ("abs", LOG2, 1.0),
        ("k1+", LOG2, LOG2),
        ("k3+", 0.5 + LOG2 - 1, LOG2),
        ("abs+", LOG2, LOG2),
    ],
)
def test_kl_in_the_loss_has_the_value_of_its_estimator_and_with_a_plus_the_gradient_of_k2(estimator, value, slope_at):
    tokens = one_row([2.0], advantage=0.0, more={REFERENCE_LOGPROBS: torch.zeros(1, dtype=torch.float64)})
    priced, gradient_T = slope(Clipped(kl=0.1, kl_estimator=estimator), tokens, counts_of(tokens))
    assert float(priced.loss) == pytest.approx(0.1 * value)
    assert gradient_T.tolist() == pytest.approx([0.1 * slope_at])
    assert float(priced.metrics["kl_reference"]) == pytest.approx(value)


def test_the_entropy_bonus_lowers_the_loss_by_its_share():
    assert price(Clipped(entropy=0.1), one_row([1.0, 1.0], advantage=0.0)) == pytest.approx(-0.05)


def test_truncated_weights_correct_for_the_sampler_but_not_for_reused_tokens():
    sampler_T = torch.tensor([-LOG2 / 2, -2.0, -2.0], dtype=torch.float64)
    more = {SAMPLER_LOGPROBS: sampler_T, REUSED: torch.tensor([0])}
    tokens = one_row([1.0, 1.0, 1.0], advantage=-1.0, more=more)
    assert price(Clipped(truncate=2.0), tokens) == pytest.approx((math.sqrt(2) + 2 + 2) / 3)
    tokens.columns["reused"] = torch.tensor([2])
    assert price(Clipped(truncate=2.0), tokens) == pytest.approx((1 + 1 + 2) / 3)
    assert price(Clipped(truncate=2.0, truncate_level="icepop"), tokens) == pytest.approx(2 / 3)
    assert price(Clipped(truncate=1.5, truncate_level="sequence"), tokens) == pytest.approx(1.5)


EVERYTHING = Clipped(kl=0.1, kl_estimator="k3+", entropy=0.01, truncate=2.0, truncate_level="sequence")


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum"])
def test_shares_of_any_split_add_up_to_the_whole(aggregation):
    objective = Clipped(aggregation=aggregation, kl=0.1, entropy=0.01, truncate=2.0, truncate_level="sequence")
    tokens = random_tokens(objective)
    counts = counts_of(tokens)
    whole, gradient_T = slope(objective, tokens, counts)
    shares = [objective.price(part(tokens, rows), counts) for rows in ([4, 0], [2], [3], [1])]
    torch.testing.assert_close(sum(share.loss for share in shares), whole.loss)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(share.metrics[name] for share in shares), value)
    (split_T,) = torch.autograd.grad(sum(share.loss for share in shares), tokens.logprobs_T)
    torch.testing.assert_close(split_T, gradient_T)


def test_garbage_under_the_mask_changes_neither_price_nor_gradient():
    tokens = random_tokens(EVERYTHING)
    counts = counts_of(tokens)
    clean, clean_T = slope(EVERYTHING, tokens, counts)
    dead_T = tokens.mask_T == 0
    for name in ("advantage", "old_logprobs", "reference_logprobs", "sampler_logprobs"):
        tokens.columns[name][dead_T] = math.nan
    with torch.no_grad():
        tokens.logprobs_T[dead_T] = -math.inf
    dirty, dirty_T = slope(EVERYTHING, tokens, counts)
    assert torch.equal(clean.loss, dirty.loss)
    assert torch.equal(clean_T, dirty_T)


def test_an_empty_micro_batch_costs_nothing_and_names_every_metric():
    empty = part(random_tokens(EVERYTHING), [])
    priced = EVERYTHING.price(empty, counts_of(random_tokens(EVERYTHING)))
    assert float(priced.loss) == 0.0
    assert set(priced.metrics) == {"clip_fraction", "kl_old", "kl_reference", "correction"}
    assert all(float(value) == 0.0 for value in priced.metrics.values())


def test_what_is_read_follows_the_fields():
    assert REFERENCE_LOGPROBS not in Clipped().reads
    assert REFERENCE_LOGPROBS in Clipped(kl=0.1).reads
    assert {SAMPLER_LOGPROBS, REUSED} <= set(Clipped(truncate=2.0).reads)


@pytest.mark.parametrize(
    "fields",
    [
        {"low": -0.1},
        {"dual_clip": 0.5},
        {"max_response": 10},
        {"aggregation": "seq-mean-token-sum-norm", "max_response": 0},
        {"truncate": 0.0},
    ],
    ids=str,
)
def test_fields_that_make_no_loss_are_refused(fields):
    with pytest.raises(SpecError, match="objective clipped"):
        Clipped(**fields)
