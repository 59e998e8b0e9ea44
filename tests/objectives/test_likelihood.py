import pytest
import torch

from megatron_rl.batch.columns import LOSS_WEIGHT
from megatron_rl.objectives.likelihood import Likelihood
from megatron_rl.spec.schema import SpecError
from tests.fakes.priced_tokens import counts_of, part, random_tokens, slope, tokens_of


def test_the_price_is_the_mean_negative_log_probability_of_live_tokens():
    logprobs_T = torch.tensor([-1.0, -2.0, -100.0], dtype=torch.float64).requires_grad_()
    mask_T = torch.tensor([1, 1, 0], dtype=torch.uint8)
    tokens = tokens_of([2, 1], logprobs_T, mask_T, {LOSS_WEIGHT: torch.tensor([3.0, 1.0])}, torch.zeros(3))
    priced, gradient_T = slope(Likelihood(), tokens, counts_of(tokens))
    assert float(priced.loss) == 4.5
    assert float(priced.metrics["nll"]) == 1.5
    assert gradient_T.tolist() == [-1.5, -1.5, 0.0]


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_shares_of_any_split_add_up_to_the_whole(aggregation):
    objective = Likelihood(aggregation=aggregation)
    tokens = random_tokens(objective)
    counts = counts_of(tokens)
    whole = objective.price(tokens, counts).loss
    shares = [objective.price(part(tokens, rows), counts).loss for rows in ([3], [0, 4], [1, 2])]
    torch.testing.assert_close(sum(shares), whole)


def test_the_constant_is_the_response_budget_unless_it_was_given():
    by_budget = Likelihood(aggregation="seq-mean-token-sum-norm")
    assert by_budget.within(7).max_response == 7
    assert Likelihood(aggregation="seq-mean-token-sum-norm", max_response=5).within(7).max_response == 5


def test_a_budget_without_the_aggregation_that_uses_it_is_refused():
    with pytest.raises(SpecError, match="max_response"):
        Likelihood(max_response=5)
