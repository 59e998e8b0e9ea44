from dataclasses import replace

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Job, Setup
from megatron_rl.planner.learning import score, update
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.work import forward
from tests.planner.configs import QWEN3_8B, QWEN3_30B_A3B

SETUP = Setup(
    architecture=describe(QWEN3_8B),
    cluster=Cluster(nodes=4),
    job=Job(prompts=128, samples=8, lengths=Lengths(mean=1000, most=4096)),
)
ACTOR = ActorSettings(tp=2, dp=16)


def test_learning_is_three_forward_passes_at_the_reached_speed():
    work = 3 * forward(SETUP.architecture, SETUP.job.tokens, SETUP.job.squares)
    assert update(SETUP, ACTOR).compute == pytest.approx(work / 32 / (0.45 * 989e12) * 1.03)
    assert score(SETUP, ACTOR) < update(SETUP, ACTOR).total / 2.5
    again = update(SETUP, replace(ACTOR, recompute=Recompute(granularity="full")))
    assert again.compute == pytest.approx(4 / 3 * update(SETUP, ACTOR).compute)


def test_each_way_of_cutting_has_its_own_price():
    assert update(SETUP, ACTOR).bubble == 0
    deep = update(SETUP, replace(ACTOR, pp=2, dp=8))
    woven = update(SETUP, replace(ACTOR, pp=2, dp=8, vpp=2))
    assert deep.bubble > woven.bubble > 0
    assert update(SETUP, replace(ACTOR, tp=1, dp=32)).tensor == 0
    assert update(SETUP, replace(ACTOR, tp=8, dp=4)).tensor > update(SETUP, ACTOR).tensor
    assert update(SETUP, replace(ACTOR, tp=1, dp=32)).data > update(SETUP, replace(ACTOR, tp=8, dp=4)).data


def test_more_epochs_optimizer_steps_and_a_critic_cost_more():
    once = update(SETUP, ACTOR)
    twice = update(replace(SETUP, job=replace(SETUP.job, epochs=2)), ACTOR)
    valued = update(replace(SETUP, job=replace(SETUP.job, has_critic=True)), ACTOR)
    parts = update(replace(SETUP, job=replace(SETUP.job, optimizer_steps=4)), ACTOR)
    assert twice.total == pytest.approx(2 * once.total)
    assert valued.compute == pytest.approx(2 * once.compute)
    assert parts.data == pytest.approx(4 * once.data)


def test_tokens_travel_to_dealt_experts():
    mixture = replace(SETUP, architecture=describe(QWEN3_30B_A3B))
    assert update(mixture, ActorSettings(dp=32, ep=8)).tensor > 0
    assert update(mixture, ActorSettings(dp=32)).tensor == 0


def test_keys_and_values_travel_between_context_ranks():
    dealt = update(SETUP, replace(ACTOR, tp=1, dp=16, cp=2))
    # Of 36 layers, keys and values of 8 heads of 128 numbers in 16 bits, shown once forward and twice backward.
    tokens = SETUP.job.tokens / 32 * 1.03
    assert dealt.tensor == pytest.approx(3 * tokens * 36 * 2 * 8 * 128 * 2 / SETUP.cluster.wire(2))
    assert dealt.compute == pytest.approx(update(SETUP, ACTOR).compute)


def test_short_batches_take_as_long_as_their_kernels_take_to_start():
    tiny = replace(SETUP, job=replace(SETUP.job, prompts=32, samples=1, lengths=Lengths(mean=2, most=2)))
    assert update(tiny, ACTOR).compute >= 36 * 3 * 0.2e-3
