"""The actor's and the engine's log-probabilities at step 0, with fresh weights: one law, two implementations."""

from __future__ import annotations

import pytest
import torch

from megatron_rl.actor.precision import Precision
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, PROMPT_TOKENS, SAMPLER_LOGPROBS, TOKENS
from megatron_rl.rollout.embedded import Embedded
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vocabulary import Vocabulary
from tests.gpu.wide import VOCABULARY, actor_of
from tests.rollout.opening import asked, blueprint_of, words

pytestmark = pytest.mark.gpu

MEAN_BAND, MAX_BAND = 0.03, 0.3
"""Both sides round to BF16, each in its own order: the sum of their errors against float32."""
PROMPTS, SAMPLES, TOKENS_EACH = 8, 4, 64


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(8)
    return [torch.randint(0, VOCABULARY, (5 + 3 * number,), generator=draw).tolist() for number in range(PROMPTS)]


@pytest.mark.parametrize("law", [{}, {"temperature": 0.7}, {"top_p": 0.9, "top_k": 50}], ids=str)
def test_the_embedded_engine_and_the_actor_agree_on_what_it_sampled(alone, qwen3, measured, law):
    sampling = SamplingSettings(max_tokens=TOKENS_EACH, **law)
    vocabulary = Vocabulary(decode=words, end=())
    engine = Embedded().open(blueprint_of(qwen3.folder), vocabulary, sampling, torch.bfloat16)
    engine.load(qwen3.folder)
    engine.serve(0)
    asked_B = [prompt for prompt in prompts() for _ in range(SAMPLES)]
    batch = engine.generate(asked(asked_B))
    sampled_R, again_R = batch.ragged(SAMPLER_LOGPROBS).values, engine.score(batch).values
    scored_R = actor_of(qwen3.folder, Precision(compute="bf16"), sampling=sampling.law).score(batch).values
    difference_R = (scored_R - sampled_R).abs()
    measured(mean=difference_R.mean(), p99=difference_R.quantile(0.99), max=difference_R.max(), mean_band=MEAN_BAND)
    measured(engine_with_itself=(again_R - sampled_R).abs().max())
    assert len(sampled_R) == PROMPTS * SAMPLES * TOKENS_EACH
    assert difference_R.mean() <= MEAN_BAND
    assert difference_R.quantile(0.99) <= MAX_BAND


@pytest.mark.vllm
def test_vllm_and_the_actor_agree_on_what_vllm_sampled(alone, qwen3, measured):
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(qwen3.folder),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=512,
        gpu_memory_utilization=0.2,
        seed=0,
    )
    drawn = SamplingParams(
        n=SAMPLES, temperature=1.0, max_tokens=TOKENS_EACH, ignore_eos=True, logprobs=0, detokenize=False
    )
    answers = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts()], drawn)
    rollouts = [(group, answer, one) for group, answer in enumerate(answers) for one in answer.outputs]
    batch = Batch.of(
        {
            GROUP: [group for group, _, _ in rollouts],
            PROMPT_TOKENS: [list(answer.prompt_token_ids) for _, answer, _ in rollouts],
            TOKENS: [list(one.token_ids) for _, _, one in rollouts],
        }
    )
    sampled_R = torch.tensor(
        [law[token].logprob for _, _, one in rollouts for token, law in zip(one.token_ids, one.logprobs, strict=True)]
    )
    scored_R = actor_of(qwen3.folder, Precision(compute="bf16")).score(batch).values
    difference_R = (scored_R - sampled_R).abs()
    measured(mean=difference_R.mean(), p99=difference_R.quantile(0.99), max=difference_R.max(), mean_band=MEAN_BAND)
    assert len(sampled_R) == PROMPTS * SAMPLES * TOKENS_EACH
    assert difference_R.mean() <= MEAN_BAND
    assert difference_R.max() <= MAX_BAND
