import pytest
import torch

from megatron_rl.batch.columns import OPTIMAL_VALUE, REFERENCE_LOGPROBS, REWARD
from megatron_rl.objectives.value_regression import ValueRegression
from megatron_rl.spec.schema import SpecError
from tests.fakes.priced_tokens import counts_of, part, random_tokens, slope, tokens_of


def test_the_worked_example_of_three_sequences():
    columns = {
        REFERENCE_LOGPROBS: torch.zeros(4, dtype=torch.float64),
        REWARD: torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64),
        OPTIMAL_VALUE: torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64),
    }
    logprobs_T = torch.tensor([0.0, 0.0, -0.5, -0.5], dtype=torch.float64).requires_grad_()
    tokens = tokens_of([1, 1, 2], logprobs_T, torch.ones(4, dtype=torch.uint8), columns, torch.zeros(4))
    priced, gradient_T = slope(ValueRegression(beta2=0.001), tokens, counts_of(tokens))
    assert float(priced.loss) == pytest.approx((0.25 + 0.0625 + 1e-6) / 3)
    assert gradient_T.tolist() == pytest.approx([-0.001 / 3, 0.0005 / 3, -2e-6 / 3, -2e-6 / 3])
    assert float(priced.metrics["residual_size"]) == pytest.approx((0.5 + 0.25 + 0.001) / 3)


def test_shares_of_any_split_add_up_and_masked_rows_do_not_count():
    objective = ValueRegression(beta2=0.1)
    tokens = random_tokens(objective)
    counts = counts_of(tokens)
    assert counts.rows == 2
    whole = objective.price(tokens, counts)
    shares = [objective.price(part(tokens, rows), counts) for rows in ([1, 3], [4], [2, 0])]
    torch.testing.assert_close(sum(share.loss for share in shares), whole.loss)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(share.metrics[name] for share in shares), value)


def test_garbage_under_the_mask_changes_nothing():
    objective = ValueRegression()
    tokens = random_tokens(objective)
    clean = objective.price(tokens, counts_of(tokens)).loss
    tokens.columns["reference_logprobs"][tokens.mask_T == 0] = float("nan")
    assert torch.equal(objective.price(tokens, counts_of(tokens)).loss, clean)


def test_a_price_of_distance_that_is_not_positive_is_refused():
    with pytest.raises(SpecError, match="beta2"):
        ValueRegression(beta2=0.0)
