import math

import pytest
import torch

from megatron_rl.batch.columns import ERROR, RESPONSE_TEXT, SAMPLER_LOGPROBS, STATUS, TOKEN_VERSIONS, TOKENS, VERSION
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.rollout.vocabulary import Vocabulary
from megatron_rl.rollout.writing import (
    draw,
    end_stopped,
    read_requests,
    refuse_unknown,
    refuse_unscorable,
    returned,
)
from tests.rollout.opening import asked, words


def test_requests_know_what_they_start_from_and_how_far_they_may_go():
    first, second, third = read_requests(
        asked([[5, 6], [7], [8] * 9], prefixes=[[1], [1, 2], []], budgets=[4, 2, 4]), max_tokens=9, context=10
    )
    assert (first.context, first.budget, first.finish) == ([5, 6, 1], 4, "")
    assert second.finish == "length"
    assert third.budget == 1
    first.tokens.append(9)
    assert [request.written for request in (first, second, third)] == [1, 0, 0], "a prefix is not written again"


def test_a_prefix_without_log_probabilities_has_none_to_tell():
    (request,) = read_requests(asked([[5]], prefixes=[[1, 2]]), max_tokens=9, context=10)
    assert all(math.isnan(value) for value in request.logprobs)


def test_a_request_with_a_token_that_the_model_has_not_is_refused():
    requests = read_requests(asked([[5, 6], [7, 50], [8]], prefixes=[[], [], [-1]]), max_tokens=9, context=10)
    refuse_unknown(requests, vocabulary=50)
    assert [request.finish for request in requests] == ["", "abort", "abort"]
    assert [request.error for request in requests[1:]] == [
        "token 50 is none of the model's 50",
        "token -1 is none of the model's 50",
    ]


def test_a_prefix_that_outgrows_the_context_fails_and_one_that_fills_it_is_long_enough():
    over, full = read_requests(asked([[5, 6]] * 2, prefixes=[[7] * 9, [7] * 8]), max_tokens=20, context=10)
    assert over.error == "prompt and prefix have 11 tokens, and the model's context is 10"
    assert (over.finish, full.finish, full.error) == ("abort", "length", "")


def test_a_prefix_that_ends_the_response_has_stopped_even_at_its_budget():
    batch = asked([[5]] * 4, prefixes=[[7, 1], [7, 1], [1, 7], [50, 1]], budgets=[9, 2, 2, 9])
    requests = read_requests(batch, max_tokens=9, context=10)
    refuse_unknown(requests, vocabulary=50)
    end_stopped(requests, Vocabulary(decode=words, end=(1,)))
    assert [request.finish for request in requests] == ["stop", "stop", "length", "abort"]


def test_what_has_no_response_is_no_hindrance_to_a_score():
    batch = asked([[], [99], [5] * 99, [5]]).with_columns({TOKENS: [[], [], [], [6]]})
    refuse_unscorable(batch, context=2, vocabulary=10)
    with pytest.raises(ValueError, match="row 3 cannot be scored: prompt and response have 2 tokens"):
        refuse_unscorable(batch, context=1, vocabulary=10)


def test_a_failed_request_comes_back_without_tokens_and_with_its_reason():
    batch = asked([[5], [6]])
    requests = read_requests(batch, max_tokens=9, context=10)
    for request in requests:
        request.tokens, request.logprobs, request.finish = [3, 4], [-0.5, -0.5], "stop"
    requests[1].error = "it broke"
    rollouts = returned(batch, requests, 7, Vocabulary(decode=words, end=()))
    assert rollouts[TOKENS].length_B.tolist() == rollouts[SAMPLER_LOGPROBS].length_B.tolist() == [2, 0]
    assert (rollouts[STATUS], rollouts[ERROR]) == (["ok", "failed"], ["", "it broke"])
    assert rollouts[RESPONSE_TEXT] == ["<3><4>", ""]
    assert rollouts[TOKEN_VERSIONS].values.tolist() == [7, 7]


def test_tokens_whose_writer_is_told_stand_behind_those_that_were_there():
    requests = read_requests(asked([[5]] * 3, prefixes=[[3], [], [1]]), max_tokens=9, context=10)
    for request, written in zip(requests, ([7, 8], [8], []), strict=True):
        request.tokens, request.versions, request.finish = [*request.tokens, *[4] * len(written)], written, "stop"
        request.logprobs = [-0.5] * len(request.tokens)
    rollouts = returned(asked([[5]] * 3), requests, 6, Vocabulary(decode=words, end=()))
    assert [row.tolist() for row in rollouts[TOKEN_VERSIONS].rows()] == [[6, 7, 8], [8], [6]]
    assert rollouts.numbers(VERSION).tolist() == [8, 8, 6]


def test_a_draw_depends_on_its_seed_and_place_alone():
    logits_NV = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).expand(6, -1)
    seed_N, place_N = torch.tensor([1, 1, 1, 2, 2, 2]), torch.tensor([0, 1, 2, 0, 1, 2])
    together = draw(logits_NV, Sampling(), seed_N, place_N)
    apart = [draw(logits_NV[:1], Sampling(), seed_N[n : n + 1], place_N[n : n + 1]).token_N.item() for n in range(6)]
    assert together.token_N.tolist() == apart
    assert len(set(apart)) > 1


def test_temperature_zero_draws_the_likeliest():
    logits_NV = torch.tensor([[0.0, 3.0, 1.0]])
    drawn = draw(logits_NV, Sampling(temperature=0), torch.tensor([1]), torch.tensor([0]))
    assert (drawn.token_N.item(), drawn.logprob_N.item()) == (1, 0.0)


def test_a_token_outside_the_nucleus_is_never_drawn():
    logits_NV = torch.tensor([[5.0, 4.0, 0.0, -1.0]]).expand(2000, -1)
    drawn = draw(logits_NV, Sampling(top_k=2), torch.arange(2000), torch.zeros(2000, dtype=torch.int64))
    assert set(drawn.token_N.tolist()) == {0, 1}
