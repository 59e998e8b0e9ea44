"""Log-probabilities and entropies over a cut vocabulary, against the whole one."""

from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state

from megatron_rl.actor import groups, vocab_parallel
from megatron_rl.actor.parallel import Parallel
from megatron_rl.ops.logprobs import Sampling, entropy, sampling_logprobs
from tests import ranks

VOCABULARY, WIDTH, TOKENS = 11, 16, 9
PREDICTORS = (0, 2, 3, 7, 8)
LAWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "temperature": {"temperature": 0.7},
    "cut": {"temperature": 1.3, "top_p": 0.8, "top_k": 7, "min_p": 0.01},
}


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits_TV = torch.randn(TOKENS, WIDTH, generator=draw, dtype=torch.float64).to(dtype)
    # The likeliest tokens, so that every law can draw them.
    target_R = logits_TV[list(PREDICTORS), :VOCABULARY].argmax(1)
    return logits_TV, target_R


def slopes() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    return tuple(torch.randn(len(PREDICTORS), generator=draw, dtype=torch.float64) for _ in range(2))


def cut_scores(tp: int, laws: list[dict[str, Any]], chunk: int = 2**25) -> list[dict[str, np.ndarray]]:
    groups.cut(Parallel(tp=tp))
    group = parallel_state.get_tensor_model_parallel_group()
    width, results = WIDTH // tp, []
    vocab_parallel.CHUNK_NUMBERS, kept = chunk, vocab_parallel.CHUNK_NUMBERS
    for fields in laws:
        whole_TV, target_R = inputs()
        local_TV = whole_TV[:, group.rank() * width :][:, :width].clone().requires_grad_()
        law = vocab_parallel.Law(Sampling(**fields), VOCABULARY, group)
        scored = vocab_parallel.score(local_TV * 1, torch.tensor(PREDICTORS), target_R, law)
        torch.autograd.backward(scored, slopes())
        results.append({"logprob": scored[0], "entropy": scored[1], "gradient": local_TV.grad})
    vocab_parallel.CHUNK_NUMBERS = kept
    return [{name: values.detach().numpy() for name, values in result.items()} for result in results]


def whole_scores(fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    logits_TV, target_R = inputs()
    logits_TV.requires_grad_()
    law_RV = sampling_logprobs(logits_TV[list(PREDICTORS), :VOCABULARY], Sampling(**fields))
    logprob_R, entropy_R = law_RV.gather(1, target_R[:, None]).squeeze(1), entropy(law_RV)
    torch.autograd.backward((logprob_R, entropy_R), slopes())
    return {"logprob": logprob_R, "entropy": entropy_R, "gradient": logits_TV.grad}


@pytest.mark.parametrize(("tp", "chunk"), [(1, 2**25), (1, 2 * WIDTH), (2, 2**25), (4, 12)])
def test_a_cut_vocabulary_gives_the_law_its_entropy_and_both_gradients(tp, chunk):
    answers = ranks.run(cut_scores, world=tp, tp=tp, laws=list(LAWS.values()), chunk=chunk)
    for number, fields in enumerate(LAWS.values()):
        expected = whole_scores(fields)
        for answer in answers:
            for name in ("logprob", "entropy"):
                np.testing.assert_allclose(answer[number][name], expected[name].detach(), rtol=0, atol=1e-12)
        gradient_TV = np.concatenate([answer[number]["gradient"] for answer in answers], 1)
        np.testing.assert_allclose(gradient_TV, expected["gradient"], rtol=0, atol=1e-12)


def drawn_outside() -> list[float]:
    groups.cut(Parallel())
    law = vocab_parallel.Law(Sampling(top_k=1), VOCABULARY, parallel_state.get_tensor_model_parallel_group())
    logits_TV = torch.tensor([[2.0, 1.0] + [-50.0] * 9], requires_grad=True)
    scored = vocab_parallel.score(logits_TV * 1, torch.tensor([0]), torch.tensor([1]), law)
    scored.logprob_R.sum().backward()
    return [float(scored.logprob_R.detach()), *logits_TV.grad[0, :3].tolist()]


def test_a_token_that_was_drawn_stays_in_the_law_it_was_drawn_from():
    (answer,) = ranks.run(drawn_outside, world=1)
    likely = 1 / (1 + np.exp(1.0))
    np.testing.assert_allclose(answer, [np.log(likely), likely - 1, 1 - likely, 0.0], atol=1e-6)


def memory_shared() -> bool:
    groups.cut(Parallel())
    law = vocab_parallel.Law(Sampling(), VOCABULARY, parallel_state.get_tensor_model_parallel_group())
    logits_TV = inputs(torch.float32)[0].requires_grad_()
    inner_TV = logits_TV * 1
    seen = []
    inner_TV.register_hook(lambda gradient_TV: seen.append(gradient_TV.data_ptr() == inner_TV.data_ptr()))
    vocab_parallel.score(inner_TV, torch.tensor([1, 2]), torch.tensor([0, 1]), law).logprob_R.sum().backward()
    return seen == [True]


def test_the_gradient_of_the_logits_takes_the_place_of_the_logits():
    assert ranks.run(memory_shared, world=1) == [True]
