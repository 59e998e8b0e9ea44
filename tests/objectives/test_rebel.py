import pytest
import torch

from megatron_rl.batch.columns import GROUP, LOSS_WEIGHT, OLD_LOGPROBS, REWARD
from megatron_rl.objectives.rebel import Rebel
from megatron_rl.ops.losses import rebel_residual
from megatron_rl.spec.schema import SpecError
from tests.fakes.priced_tokens import counts_of, slope, tokens_of


def pairs(log_ratios, rewards, groups, lengths=None):
    """Rollouts whose log-ratios, summed over their tokens, are given."""
    lengths = lengths or [1] * len(log_ratios)
    old_T = torch.zeros(sum(lengths), dtype=torch.float64)
    per_token = torch.tensor(log_ratios, dtype=torch.float64) / torch.tensor(lengths)
    logprobs_T = per_token.repeat_interleave(torch.tensor(lengths)).requires_grad_()
    columns = {
        GROUP: torch.tensor(groups),
        REWARD: torch.tensor(rewards, dtype=torch.float64),
        OLD_LOGPROBS: old_T,
        LOSS_WEIGHT: torch.ones(len(rewards), dtype=torch.float64),
    }
    return tokens_of(lengths, logprobs_T, torch.ones(sum(lengths), dtype=torch.uint8), columns, old_T)


def test_two_rollouts_pay_the_square_of_the_difference_that_the_formula_names():
    tokens = pairs([0.4, -0.2], [1.0, 0.0], [7, 7], lengths=[3, 2])
    priced, _ = slope(Rebel(eta=0.5), tokens, counts_of(tokens, groups=1))
    residual = rebel_residual(*(torch.tensor(v, dtype=torch.float64) for v in (0.4, -0.2, 1.0, 0.0)), eta=0.5)
    torch.testing.assert_close(priced.loss, residual.square())


def test_more_rollouts_pay_the_mean_over_their_pairs_and_groups_are_averaged():
    ratios, rewards, groups = [0.1, -0.3, 0.2, 0.5], [1.0, 0.0, 0.0, 1.0], [0, 0, 0, 1]
    tokens = pairs(ratios, rewards, groups)
    priced, _ = slope(Rebel(eta=1.0), tokens, counts_of(tokens, groups=2))
    x = [ratio - reward for ratio, reward in zip(ratios, rewards, strict=True)]
    of_pairs = [(x[a] - x[b]) ** 2 for a, b in ((0, 1), (0, 2), (1, 2))]
    assert priced.loss.item() == pytest.approx(sum(of_pairs) / 3 / 2)


def test_at_the_old_policy_its_gradient_is_the_policy_gradient_with_the_rival_as_baseline():
    tokens = pairs([0.0, 0.0], [1.0, 0.0], [0, 0])
    _, gradient_T = slope(Rebel(eta=2.0), tokens, counts_of(tokens, groups=1))
    torch.testing.assert_close(gradient_T, torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_at_the_tilted_policy_nothing_is_left_to_learn():
    # log(pi / old) = eta r up to a constant of the prompt, which the difference cancels.
    tokens = pairs([0.5 * 1.0 + 0.3, 0.5 * 0.25 + 0.3], [1.0, 0.25], [0, 0])
    priced, gradient_T = slope(Rebel(eta=0.5), tokens, counts_of(tokens, groups=1))
    torch.testing.assert_close(priced.loss, torch.zeros((), dtype=torch.float64))
    assert float(gradient_T.abs().max()) < 1e-12


def test_eta_must_be_positive():
    with pytest.raises(SpecError, match="eta above 0"):
        Rebel(eta=0.0)
