import pytest
import torch

from megatron_rl.batch.columns import ERROR, TOKENS
from megatron_rl.ops.logprobs import Sampling
from tests.contracts.engines import broken_folder
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, random_prompts
from tests.rollout.scripted import order

pytestmark = pytest.mark.vllm
LAW = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


def test_nothing_is_read_from_disk_and_log_probabilities_are_of_the_law_sampled_from(tmp_path):
    pytest.importorskip("vllm")
    from megatron_rl.rollout.vllm_core import _arguments

    arguments = _arguments(order(tmp_path))
    assert (arguments["load_format"], arguments["logprobs_mode"]) == ("dummy", "processed_logprobs")
    assert arguments["max_model_len"] == 65


class Refusing:
    """An engine that knows nothing but how to refuse its second request."""

    def __init__(self):
        self.taken, self.aborted, self.calls = [], [], []

    def add_request(self, id, prompt, params):
        if self.taken:
            raise ValueError("no more")
        self.taken.append(id)

    def abort_request(self, ids):
        self.aborted += ids

    def collective_rpc(self, method, args):
        self.calls.append(args)


@pytest.fixture
def core(monkeypatch):
    pytest.importorskip("vllm")
    from megatron_rl.rollout.vllm_core import Core

    made = Core.__new__(Core)
    made.engine, made.written, made.is_greedy = Refusing(), {}, False
    return made


def test_a_score_that_is_refused_leaves_nothing_behind_in_vllm(core):
    with pytest.raises(ValueError, match="no more"):
        core.score(LAW, [{"id": id, "tokens": [5, 6], "start": 1} for id in range(3)])
    assert set(core.engine.taken) <= set(core.engine.aborted)
    assert core.engine.calls[-1] == (None,)


def test_what_vllm_cannot_draw_by_is_refused_by_request(core):
    asked_for = [{"id": id, "tokens": [5, 6], "room": 4, "seed": id} for id in (3, 4)]
    refused = core.write(LAW | {"temperature": 3.0}, {"tokens": [1], "texts": []}, asked_for)
    assert [id for id, _ in refused] == [3, 4]
    assert all("temperature" in why for _, why in refused)
    assert core.write(LAW, {"tokens": [1], "texts": []}, asked_for) == [(4, "no more")]


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_whose_numbers_are_not_finite_ends_at_its_first_piece_and_the_group_lives_on(
    vllm_serving, vllm_folder, tmp_path, temperature
):
    engine, restarts = vllm_serving.engine, vllm_serving.engine.fleet.restarts
    vllm_serving.publish(broken_folder(tmp_path))
    rollouts = engine.generate(asked([[5, 6]] * 3, budgets=[60] * 3), Sampling(temperature=temperature))
    assert all("response token 0" in error and "nan" in error for error in rollouts[ERROR])
    vllm_serving.publish(vllm_folder)
    assert engine.generate(asked([[5, 6]] * 3, budgets=[60] * 3))[ERROR] == [""] * 3
    assert engine.fleet.restarts == restarts
