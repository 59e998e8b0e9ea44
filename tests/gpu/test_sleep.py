"""vLLM on a GPU that it shares: its memory comes back while the actor learns, and nothing else is different."""

from __future__ import annotations

import pytest
import torch

from megatron_rl.batch.columns import SAMPLER_LOGPROBS, TOKENS
from megatron_rl.ops.logprobs import Sampling
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, random_prompts
from tests.rollout.serving import Serving

pytestmark = [pytest.mark.gpu, pytest.mark.vllm]

SHARE, STEPS = 0.3, 3
GREEDY = Sampling(temperature=0.0)


def test_a_group_that_slept_gave_its_memory_back_and_writes_as_if_it_had_not(tmp_path, measured):
    folder = tiny_folder(tmp_path / "model", "qwen3", hidden_size=256, num_attention_heads=4, head_dim=64)
    serving = Serving(folder, tmp_path, sleep=True, memory_share=SHARE)
    try:
        serving.publish(folder)
        batch = asked(random_prompts(16), budgets=[24] * 16)
        expected = serving.engine.generate(batch, GREEDY)
        for _ in range(STEPS):
            awake, whole = torch.cuda.mem_get_info()
            serving.engine.sleep()
            freed = torch.cuda.mem_get_info()[0] - awake
            serving.publish(folder)
            found = serving.engine.generate(batch, GREEDY)
            assert freed > SHARE * whole / 2
            for column in (TOKENS, SAMPLER_LOGPROBS):
                assert torch.equal(found.ragged(column).values, expected.ragged(column).values)
        assert serving.engine.fleet.restarts == 0
        measured(freed_gib=freed / 2**30, share_gib=SHARE * whole / 2**30)
    finally:
        serving.engine.close()
