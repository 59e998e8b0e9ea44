"""Values and gradients of the losses, worked by hand, and what A*-PO claims of its own."""

import math

import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops.losses import (
    Clip,
    clipped_surrogate,
    kl,
    likelihood,
    live_difference,
    rebel_residual,
    value_loss,
    value_regression,
)
from megatron_rl.ops.values import optimal_policy

REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)


def priced(log_ratio, advantage, clip):
    log_ratio_T = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    loss_T = clipped_surrogate(log_ratio_T, torch.tensor([advantage], dtype=torch.float64), clip).loss_T
    loss_T.backward()
    return loss_T.item(), log_ratio_T.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.28, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (7.0, -1.0, 3.0, 0.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_each_branch_has_its_price_and_its_slope(ratio, advantage, loss, slope):
    assert priced(math.log(ratio), advantage, Clip(0.2, 0.28, 3.0)) == pytest.approx((loss, slope))


def test_without_dual_clip_a_likelier_bad_token_costs_in_full():
    assert priced(math.log(7.0), -1.0, Clip(0.2, 0.28, None)) == pytest.approx((7.0, 7.0))


def test_at_the_old_policy_the_slope_is_the_policy_gradient():
    for advantage in (2.0, -2.0):
        assert priced(0.0, advantage, Clip()) == (-advantage, -advantage)


def test_wild_ratios_stay_finite():
    assert priced(1e4, 1.0, Clip())[0] == pytest.approx(-1.28)
    assert math.isfinite(priced(1e4, -1.0, Clip(dual=None))[0])


def test_garbage_under_the_mask_touches_neither_value_nor_gradient():
    garbage = [float("nan"), float("inf"), float("-inf")]
    logprob_T = torch.tensor([-1.0, *garbage], dtype=torch.float64, requires_grad=True)
    mask_T = torch.tensor([1, 0, 0, 0], dtype=torch.uint8)
    log_ratio_T = live_difference(logprob_T, torch.tensor([-1.5, *garbage]), mask_T)
    clipped_surrogate(log_ratio_T, torch.full((4,), -1.0), Clip()).loss_T.sum().backward()
    assert log_ratio_T.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert logprob_T.grad.tolist() == pytest.approx([math.exp(0.5), 0, 0, 0])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_an_unbiased_estimate_is_the_divergence(estimator):
    policy_V = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    log_ratio_V = (policy_V / REFERENCE).log()
    assert_close((policy_V * kl(log_ratio_V, estimator)).sum(), (policy_V * log_ratio_V).sum())


def expected_slope(estimator, straight_through):
    """Slope of the expected loss term in the policy's logits, the sampling law held fixed as a trainer holds it."""
    logit_V = torch.tensor([0.1, 0.7, -0.3], dtype=torch.float64, requires_grad=True)
    logprob_V = logit_V.log_softmax(0)
    terms_V = kl(logprob_V - REFERENCE.log(), estimator, straight_through)
    return torch.autograd.grad((logprob_V.exp().detach() * terms_V).sum(), logit_V)[0]


def true_slope():
    logit_V = torch.tensor([0.1, 0.7, -0.3], dtype=torch.float64, requires_grad=True)
    logprob_V = logit_V.log_softmax(0)
    return torch.autograd.grad((logprob_V.exp() * (logprob_V - REFERENCE.log())).sum(), logit_V)[0]


def test_only_the_second_estimator_has_the_right_gradient_and_lends_it():
    assert_close(expected_slope("k2", False), true_slope())
    for estimator in ("k1", "k3"):
        assert not torch.allclose(expected_slope(estimator, False), true_slope(), atol=1e-3)
        assert_close(expected_slope(estimator, True), true_slope())


def test_straight_through_keeps_the_value():
    log_ratio_T = torch.randn(9, dtype=torch.float64)
    for estimator in ("k1", "k2", "k3", "abs"):
        assert_close(kl(log_ratio_T, estimator, straight_through=True), kl(log_ratio_T, estimator))


def test_the_third_estimator_is_bounded():
    assert kl(torch.tensor([-1e3, 1e3]), "k3").tolist() == [10.0, 10.0]
    with pytest.raises(ValueError, match="'k1', 'k2', 'k3' or 'abs'"):
        kl(torch.zeros(1), "k4")


def test_a_critic_pays_for_the_worse_of_two_moves():
    value_T, old_T, return_T = torch.tensor([0.9, 0.3]), torch.tensor([0.2, 0.2]), torch.tensor([1.0, 0.0])
    assert_close(value_loss(value_T, old_T, return_T, 0.5), torch.tensor([0.045, 0.045]))
    assert_close(value_loss(value_T, old_T, return_T, None), torch.tensor([0.005, 0.045]))


def regressed(logprob_V, beta):
    """The expected regression loss over single-token answers, the sampling law held fixed."""
    best = optimal_policy(REFERENCE, REWARD, beta)
    offsets, mask_T = torch.arange(4), torch.ones(3)
    log_ratio_T = live_difference(logprob_V, REFERENCE.log(), mask_T)
    regression = value_regression(log_ratio_T, mask_T, offsets, best.advantage_V, beta)
    return (logprob_V.exp().detach() * regression.loss_B).sum()


def test_the_optimal_policy_is_where_the_regression_rests():
    logit_V = optimal_policy(REFERENCE, REWARD, 0.5).policy_V.log().requires_grad_()
    loss = regressed(logit_V.log_softmax(0), 0.5)
    assert loss.item() == pytest.approx(0, abs=1e-24)
    assert float(torch.autograd.grad(loss, logit_V)[0].abs().max()) < 1e-12


def test_descent_on_the_regression_finds_the_optimal_policy():
    logit_V = REFERENCE.log().clone().requires_grad_()
    for _ in range(2000):
        (slope_V,) = torch.autograd.grad(regressed(logit_V.log_softmax(0), 0.5), logit_V)
        logit_V = (logit_V - 2.0 * slope_V).detach().requires_grad_()
    assert_close(logit_V.detach().softmax(0), optimal_policy(REFERENCE, REWARD, 0.5).policy_V, atol=1e-6, rtol=0)


def test_at_the_reference_the_regression_is_a_scaled_policy_gradient():
    beta, target_B = 1e-3, torch.tensor([0.75, -0.25], dtype=torch.float64)
    logprob_T = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    log_ratio_T = live_difference(logprob_T, logprob_T.detach(), torch.ones(3))
    regression = value_regression(log_ratio_T, torch.ones(3), torch.tensor([0, 2, 3]), target_B, beta)
    (slope_T,) = torch.autograd.grad(regression.loss_B.sum() / 2, logprob_T)
    assert_close(slope_T, -2 * beta * target_B[torch.tensor([0, 0, 1])] / 2)


def test_a_sequence_without_live_tokens_costs_nothing():
    regression = value_regression(torch.ones(2), torch.tensor([1, 0]), torch.tensor([0, 1, 2]), torch.ones(2), 0.5)
    assert regression.loss_B.tolist() == [0.25, 0.0]
    assert regression.log_ratio_B.tolist() == [1.0, 0.0]


def test_rebel_by_hand():
    one, zero = torch.ones(1), torch.zeros(1)
    assert rebel_residual(one * 0.2, one * -0.1, one, zero, 0.5).item() == pytest.approx(0.3 / 0.5 - 1)


def test_likelihood_prices_live_tokens_only():
    assert likelihood(torch.tensor([-1.5, float("-inf")]), torch.tensor([1, 0])).tolist() == [1.5, 0.0]
