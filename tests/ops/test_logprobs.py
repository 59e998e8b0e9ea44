"""The sampling law, defined once, and the reading of it from logits."""

import math

import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops.logprobs import Sampling, entropy, response_predictors, sampling_logprobs, score

PROBABILITY = torch.tensor([[0.4, 0.1, 0.3, 0.2]], dtype=torch.float64)


def law(**settings):
    return sampling_logprobs(PROBABILITY.log(), Sampling(**settings)).exp()[0].tolist()


def test_the_default_is_the_models_own_law():
    assert law() == pytest.approx([0.4, 0.1, 0.3, 0.2])
    assert Sampling().is_whole
    assert not Sampling(top_p=0.9).is_whole


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 9}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_p": 0.69}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.71}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_p": 1e-9}, [1, 0, 0, 0]),
        ({"min_p": 0.6}, [4 / 7, 0, 3 / 7, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 1 / 30, 9 / 30, 4 / 30]),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.8}, [16 / 25, 0, 9 / 25, 0]),
    ],
)
def test_each_setting_by_hand(settings, expected):
    assert law(**settings) == pytest.approx(expected)


def test_the_nucleus_is_measured_after_top_k():
    assert law(top_k=2, top_p=0.56) == pytest.approx([1, 0, 0, 0])
    assert law(top_p=0.56) == pytest.approx([4 / 7, 0, 3 / 7, 0])


def test_ties_are_settled_the_same_way_every_time():
    flat = torch.zeros(1, 4)
    assert sampling_logprobs(flat, Sampling(top_p=0.5)).exp().tolist() == [[0.5, 0.5, 0, 0]]
    assert sampling_logprobs(flat, Sampling(temperature=0)).exp().tolist() == [[1, 0, 0, 0]]
    assert sampling_logprobs(flat, Sampling(top_k=2)).exp().tolist() == [[0.25] * 4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_have_no_law(temperature, bad):
    logits_TV = torch.tensor([[1.0, bad, 0.0], [1.0, 3.0, 2.0]])
    logprob_TV = sampling_logprobs(logits_TV, Sampling(temperature=temperature))
    assert bool(logprob_TV[0].isnan().any())
    assert not bool(logprob_TV[1].isnan().any())


def test_low_precision_logits_are_read_in_float32():
    logits_TV = torch.randn(3, 50, dtype=torch.bfloat16)
    assert sampling_logprobs(logits_TV, Sampling()).dtype == torch.float32
    assert_close(sampling_logprobs(logits_TV, Sampling()), logits_TV.float().log_softmax(-1))


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 1.5}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(**setting)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7), Sampling(top_k=5, top_p=0.9)])
def test_chunks_change_neither_value_nor_gradient(sampling):
    torch.manual_seed(0)
    logits_TV = torch.randn(23, 17, dtype=torch.float64)
    target_T = logits_TV.argmax(-1)
    answers = []
    for chunk in (100, 4, 1):
        leaf = logits_TV.clone().requires_grad_()
        scored = score(leaf, target_T, sampling, chunk)
        (scored.logprob_T.sum() + 0.3 * scored.entropy_T.sum()).backward()
        answers.append((scored.logprob_T.detach(), scored.entropy_T.detach(), leaf.grad))
    for answer in answers[1:]:
        assert_close(answer, answers[0])
    logprob_TV = sampling_logprobs(logits_TV, sampling)
    assert_close(answers[0][0], logprob_TV.gather(-1, target_T[:, None]).squeeze(-1))


def test_a_token_outside_the_law_is_impossible():
    scored = score(PROBABILITY.log(), torch.tensor([1]), Sampling(top_k=2))
    assert scored.logprob_T.tolist() == [-math.inf]


def test_entropy_ignores_impossible_tokens_in_value_and_gradient():
    logits_TV = torch.zeros(1, 4, requires_grad=True)
    value_T = entropy(sampling_logprobs(logits_TV, Sampling(top_p=0.5)))
    value_T.sum().backward()
    assert value_T.item() == pytest.approx(math.log(2))
    assert torch.isfinite(logits_TV.grad).all()


def test_a_response_token_is_predicted_one_place_earlier():
    response = response_predictors(torch.tensor([0, 5, 8, 10]), torch.tensor([2, 3, 1]))
    assert response.predictor_R.tolist() == [1, 2, 3, 8]
    assert response.offsets.tolist() == [0, 3, 3, 4]


def test_an_empty_prompt_predicts_nothing():
    with pytest.raises(ValueError, match="at least one token"):
        response_predictors(torch.tensor([0, 5]), torch.tensor([0]))
