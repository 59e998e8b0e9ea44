import math

import pytest
import torch

from megatron_rl.batch.columns import (
    LOSS_WEIGHT,
    OLD_LOGPROBS,
    OPTIMAL_VALUE,
    REFERENCE_LOGPROBS,
    REUSED,
    REWARD,
    SAMPLER_LOGPROBS,
)
from megatron_rl.objectives.value_regression import ValueRegression
from megatron_rl.ops.values import optimal_policy
from megatron_rl.spec.schema import SpecError
from tests.fakes.priced_tokens import counts_of, part, random_tokens, slope, tokens_of


def test_the_worked_example_of_three_sequences():
    columns = {
        REFERENCE_LOGPROBS: torch.zeros(4, dtype=torch.float64),
        REWARD: torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64),
        OPTIMAL_VALUE: torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64),
        LOSS_WEIGHT: torch.ones(3, dtype=torch.float64),
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


REFERENCE_PV = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
REWARD_PV = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]], dtype=torch.float64)
BETA = 0.5


def regress_table(law_of_answers, steps, rate):
    """A table of logits, one row a prompt, trained by the objective alone on answers drawn as `law_of_answers` says."""
    optima = [
        optimal_policy(reference, reward, BETA) for reference, reward in zip(REFERENCE_PV, REWARD_PV, strict=True)
    ]
    value_P = torch.stack([optimum.value for optimum in optima])
    logits_PV = REFERENCE_PV.log().clone().requires_grad_()
    optimizer = torch.optim.SGD([logits_PV], lr=rate)
    objective = ValueRegression(beta2=BETA)
    for step in range(steps):
        logprob_PV = logits_PV.log_softmax(-1)
        prompt_B, answer_B, weight_B = law_of_answers(logprob_PV.detach().exp(), step)
        columns = {
            REFERENCE_LOGPROBS: REFERENCE_PV.log()[prompt_B, answer_B],
            REWARD: REWARD_PV[prompt_B, answer_B],
            OPTIMAL_VALUE: value_P[prompt_B],
            LOSS_WEIGHT: weight_B,
        }
        ones_T = torch.ones(len(prompt_B), dtype=torch.uint8)
        tokens = tokens_of([1] * len(prompt_B), logprob_PV[prompt_B, answer_B], ones_T, columns, ones_T.double())
        optimizer.zero_grad()
        objective.price(tokens, counts_of(tokens)).loss.backward()
        optimizer.step()
    return logits_PV.detach().softmax(-1), torch.stack([optimum.policy_V for optimum in optima])


def test_on_a_table_it_converges_to_the_closed_form_of_the_optimal_policy():
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3)).T

    def every_answer_by_its_probability(law_PV, step):
        return *places, 6 * law_PV.flatten() / 2

    found_PV, optimal_PV = regress_table(every_answer_by_its_probability, steps=1500, rate=0.5)
    torch.testing.assert_close(found_PV, optimal_PV, atol=1e-6, rtol=0)


def test_with_one_sampled_answer_a_prompt_it_converges_to_the_same_policy():
    draw = torch.Generator().manual_seed(0)
    prompt_B = torch.arange(2).repeat_interleave(8)

    def drawn(law_PV, step):
        answer_B = torch.multinomial(law_PV[prompt_B].float(), 1, generator=draw).squeeze(1)
        return prompt_B, answer_B, torch.ones(len(prompt_B), dtype=torch.float64)

    found_PV, optimal_PV = regress_table(drawn, steps=3000, rate=0.3)
    # Exact targets leave no noise at the optimum: the residual of every answer is zero there.
    torch.testing.assert_close(found_PV, optimal_PV, atol=1e-3, rtol=0)


def test_weights_of_prompts_and_of_the_samplers_numerics_multiply_the_loss_of_a_response():
    columns = {
        REFERENCE_LOGPROBS: torch.zeros(3, dtype=torch.float64),
        REWARD: torch.tensor([1.0, 1.0], dtype=torch.float64),
        OPTIMAL_VALUE: torch.zeros(2, dtype=torch.float64),
        LOSS_WEIGHT: torch.tensor([1.0, 0.5], dtype=torch.float64),
        OLD_LOGPROBS: torch.zeros(3, dtype=torch.float64),
        SAMPLER_LOGPROBS: torch.tensor([1.0, -9.0, -9.0], dtype=torch.float64),
        REUSED: torch.tensor([0, 1]),
    }
    logprobs_T = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    tokens = tokens_of([1, 2], logprobs_T, torch.ones(3, dtype=torch.uint8), columns, torch.zeros(3))
    plain = ValueRegression().price(tokens, counts_of(tokens)).loss
    corrected = ValueRegression(truncate=2.0).price(tokens, counts_of(tokens)).loss
    assert float(plain) == pytest.approx((1.0 + 0.5) / 2)
    # The first is weighed by e^-1; of the second, whose first token is reused, e^9 is capped at 2.
    assert float(corrected) == pytest.approx((math.exp(-1) + 2 * 0.5) / 2)
