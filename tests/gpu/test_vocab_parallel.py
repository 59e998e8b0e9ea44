"""Log-probabilities from logits on the GPU: the CPU's numbers, and never the logits twice."""

from __future__ import annotations

import pytest
import torch
from megatron.core import parallel_state

from megatron_rl.actor import vocab_parallel
from megatron_rl.actor.cpu import device
from megatron_rl.ops.logprobs import Sampling, entropy, sampling_logprobs

pytestmark = pytest.mark.gpu

TOKENS, WIDTH, VOCABULARY = 300, 1024, 1000
LAWS = [Sampling(), Sampling(temperature=0.7), Sampling(temperature=1.3, top_p=0.9, top_k=50)]


def law_of(sampling: Sampling, vocabulary: int = VOCABULARY) -> vocab_parallel.Law:
    return vocab_parallel.Law(sampling, vocabulary, parallel_state.get_tensor_model_parallel_group())


@pytest.mark.parametrize("sampling", LAWS, ids=str)
def test_log_probabilities_and_gradients_are_those_of_the_cpu_in_float64(alone, measured, sampling):
    draw = torch.Generator().manual_seed(7)
    logits_TV = 3 * torch.randn(TOKENS, WIDTH, generator=draw)
    predictor_R = torch.arange(0, TOKENS, 2)
    target_R = logits_TV[predictor_R, :VOCABULARY].argmax(1)
    whole_TV = logits_TV.double().requires_grad_()
    law_RV = sampling_logprobs(whole_TV[predictor_R, :VOCABULARY], sampling)
    expected_R = law_RV.gather(1, target_R[:, None]).squeeze(1)
    (expected_R.sum() + entropy(law_RV).sum()).backward()

    on_gpu_TV = logits_TV.to(device()).requires_grad_()
    scored = vocab_parallel.score(on_gpu_TV * 1, predictor_R.to(device()), target_R.to(device()), law_of(sampling))
    (scored.logprob_R.sum() + scored.entropy_R.sum()).backward()
    off = float((scored.logprob_R.cpu() - expected_R).abs().max())
    gradient_off = float((on_gpu_TV.grad.cpu() - whole_TV.grad).abs().max())
    measured(logprob=off, gradient=gradient_off)
    assert off <= 1e-5
    assert gradient_off <= 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures the memory of a CUDA device")
def test_scoring_a_packed_batch_never_holds_its_logits_twice(alone, measured):
    """16,384 tokens over 65,536 words in BF16 are 2 GiB; beside them a few chunks of 128 MiB live at a time."""
    logits_TV = torch.randn(16384, 65536, device=device(), dtype=torch.bfloat16).requires_grad_()
    inner_TV = logits_TV.view_as(logits_TV)
    size = logits_TV.nbytes
    predictor_R = torch.arange(16384, device=device())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        vocab_parallel.score(inner_TV, predictor_R, predictor_R, law_of(Sampling(), 65536))
    extra = (torch.cuda.max_memory_allocated() - before) / size
    measured(extra_over_logits=extra)
    assert extra < 0.75
