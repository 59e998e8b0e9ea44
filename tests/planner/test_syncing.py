import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.memory import elements
from megatron_rl.planner.syncing import ROUGH_S, rough, sync
from megatron_rl.reshard.bound import wire_bound
from megatron_rl.reshard.engines import vllm_layout
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import split
from tests.planner.configs import QWEN3_8B

SETUP = Setup(
    architecture=describe(QWEN3_8B),
    cluster=Cluster(nodes=2),
    job=Job(prompts=1, samples=1, lengths=Lengths(mean=1, most=1)),
)
SPLIT = Choice(actor=ActorSettings(tp=4, dp=2), engines=Engines(2, 4), placement="split")


def test_bytes_are_those_of_the_plan_and_the_fewest_there_can_be():
    moved = sync(SETUP, SPLIT)
    source, target = megatron_layout(SETUP.architecture.shape, SPLIT.actor), vllm_layout(SETUP.architecture.shape, 2, 4)
    assert moved.wire_bytes == wire_bound(source, target, split(source, target))
    assert moved.local_bytes == 0


def test_the_busiest_wire_sets_the_time():
    # Each of four groups gets all weights over the network from eight GPUs: half the model a sender and a receiver.
    half = 2 * elements(SETUP.architecture.shape) / 2
    assert sync(SETUP, SPLIT).seconds - ROUGH_S == pytest.approx(half / (0.7 * 50e9), rel=0.1)


def test_what_is_there_already_does_not_travel():
    together = sync(SETUP, Choice(actor=ActorSettings(tp=2, dp=8), engines=Engines(2, 8)))
    apart = sync(SETUP, SPLIT)
    assert together.local_bytes > 0
    assert together.seconds < apart.seconds


def test_the_rough_guess_of_a_search_is_never_below_the_plan():
    bytes_ = 2 * elements(SETUP.architecture.shape)
    assert rough(SETUP, SPLIT, bytes_).seconds >= 0.9 * sync(SETUP, SPLIT).seconds
