from dataclasses import replace

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import GIB, GPUS, Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.memory import cache_bytes, elements, footprint, longest_response, microbatches
from megatron_rl.reshard.engines import vllm_layout
from tests.planner.configs import LLAMA_8B, QWEN3_8B, QWEN3_30B_A3B

SETUP = Setup(
    architecture=describe(QWEN3_8B),
    cluster=Cluster(nodes=1),
    job=Job(prompts=64, samples=8, lengths=Lengths(mean=1000, most=4096)),
)
ACTOR = ActorSettings(
    tp=2, dp=4, update=UpdateSettings(microbatch_tokens=8192), recompute=Recompute(granularity="full")
)
CHOICE = Choice(actor=ACTOR, engines=Engines(2, 4))


@pytest.mark.parametrize(("config", "billions"), [(QWEN3_8B, 8.19), (QWEN3_30B_A3B, 30.53), (LLAMA_8B, 8.03)])
def test_published_models_have_their_published_sizes(config, billions):
    assert elements(describe(config).shape) / 1e9 == pytest.approx(billions, abs=0.005)


def test_an_engine_holds_its_part_of_the_weights_and_caches_a_head_at_least():
    shape = SETUP.architecture.shape
    held = vllm_layout(shape, 2).shards[0].elements
    assert footprint(SETUP, CHOICE).weights == pytest.approx(2 * held, rel=0.001)
    assert cache_bytes(shape, Engines(1, 1)) == 2 * 2 * 36 * 8 * 128
    assert cache_bytes(shape, Engines(16, 1)) == cache_bytes(shape, Engines(8, 1)) == 2 * 2 * 36 * 128


def test_engines_on_the_actors_gpus_get_what_learning_leaves():
    awake, asleep = (footprint(replace(SETUP, sleeps=sleeps), CHOICE) for sleeps in (False, True))
    apart = footprint(SETUP, replace(CHOICE, placement="split"))
    assert awake.cache < asleep.cache < apart.cache
    assert asleep.cache - awake.cache == awake.learning.activations.total
    assert apart.cache + apart.weights == apart.usable


def test_a_reference_and_a_critic_take_their_own():
    bare = footprint(SETUP, CHOICE).learning
    kept = footprint(SETUP, replace(CHOICE, actor=replace(ACTOR, reference="device"))).learning
    valued = footprint(replace(SETUP, job=replace(SETUP.job, has_critic=True)), CHOICE).learning
    assert kept.total - bare.total == bare.static.parameters
    assert valued.total - bare.total == sum(bare.static)


def test_what_does_not_fit_is_said_with_its_parts():
    alone = replace(CHOICE, actor=replace(ACTOR, tp=1, dp=1))
    reason = footprint(SETUP, alone).refusal(SETUP.job.longest)
    assert reason.startswith("learning needs")
    assert "weights 15.3, gradients 30.5, optimizer 91.5" in reason
    large = replace(SETUP, cluster=Cluster(nodes=1, gpu=GPUS["h200"]))
    squeezed = replace(CHOICE, actor=replace(ACTOR, dp=1), engines=Engines(1, 8))
    told = footprint(replace(large, cluster=replace(large.cluster, spare_gib=48.0)), squeezed).refusal(10**6)
    assert "an engine needs 15.3 GiB of weights" in told


def test_the_longest_response_fits_and_one_token_more_does_not():
    most = longest_response(SETUP, CHOICE)
    assert 4096 < most <= 40960 - SETUP.job.prompt_tokens
    tight = replace(SETUP, cluster=replace(SETUP.cluster, spare_gib=SETUP.cluster.gpu.memory_gib - 45))
    most = longest_response(tight, CHOICE)
    for response, fits in ((most, True), (most + 2, False)):
        tokens = tight.job.prompt_tokens + response - 1
        actor = replace(ACTOR, update=UpdateSettings(microbatch_tokens=tokens))
        assert (not footprint(tight, replace(CHOICE, actor=actor)).refusal(tokens)) == fits
    assert longest_response(replace(SETUP, cluster=replace(SETUP.cluster, spare_gib=60)), CHOICE) == 0


def test_an_interleaved_pipeline_takes_whole_rounds_of_micro_batches():
    assert microbatches(SETUP, ACTOR) == -(-int(SETUP.job.tokens / 4) // int(8192 * 0.9))
    assert microbatches(SETUP, replace(ACTOR, pp=4, vpp=2, dp=1, tp=2)) % 4 == 0


def test_usable_memory_is_what_the_driver_reports_less_the_spare():
    assert footprint(SETUP, CHOICE).usable == int(73.6 * GIB)
