import pytest
import torch

from megatron_rl.batch.columns import TOKENS
from megatron_rl.ops.logprobs import Sampling
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, random_prompts
from tests.rollout.scripted import order

pytestmark = pytest.mark.vllm


def test_nothing_is_read_from_disk_and_log_probabilities_are_of_the_law_sampled_from(tmp_path):
    pytest.importorskip("vllm")
    from megatron_rl.rollout.vllm_core import _arguments

    arguments = _arguments(order(tmp_path))
    assert (arguments["load_format"], arguments["logprobs_mode"]) == ("dummy", "processed_logprobs")
    assert arguments["max_model_len"] == 64


def test_a_prefix_cache_filled_under_older_weights_is_not_read_under_newer_ones(vllm_serving, tmp_path):
    from tests.rollout.serving import differences, expected_logprobs

    # Long contexts that share their first blocks, asked for before and after the weights change.
    prompts = [[*range(2, 82), *tail] for tail in random_prompts(12, longest=10)]
    batch = asked(prompts, budgets=[20] * 12)
    before = vllm_serving.engine.generate(batch, Sampling(temperature=0))
    vllm_serving.publish(tiny_folder(tmp_path, "qwen3", seed=5, tie_word_embeddings=True))
    after = vllm_serving.engine.generate(batch, Sampling(temperature=0))
    logprobs, likeliest = expected_logprobs(tmp_path, after)
    assert torch.cat(likeliest).tolist() == after[TOKENS].values.tolist() != before[TOKENS].values.tolist()
    assert float(differences(vllm_serving.engine.score(after).rows(), logprobs).max()) < 1e-4
