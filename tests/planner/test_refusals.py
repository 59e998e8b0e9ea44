from dataclasses import replace

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.lora import LoraSettings
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import GPUS, Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.refusals import can_share, check
from megatron_rl.planner.search import search
from megatron_rl.spec.schema import SpecError
from tests.planner.configs import QWEN3_8B, QWEN3_30B_A3B

SETUP = Setup(
    architecture=describe(QWEN3_8B),
    cluster=Cluster(nodes=2),
    job=Job(prompts=128, samples=8, lengths=Lengths(mean=1000, most=3072)),
)
CHOICE = Choice(actor=ActorSettings(tp=4, dp=2), engines=Engines(4, 2))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (replace(CHOICE, actor=ActorSettings(tp=8, dp=4)), "asks for 32 GPUs, 32 for the actor and 8 for the engines"),
        (
            replace(CHOICE, engines=Engines(4, 3), placement="split"),
            r"asks for 20 GPUs, 8 for the actor and 12 for the engines \(split\), but 2 x 8 are planned",
        ),
        (replace(CHOICE, engines=Engines(16, 1)), "1 rollout groups of 16 GPUs .* a group stands on one machine"),
        (replace(CHOICE, engines=Engines(3, 2)), r"32 attention heads and 8 key-value heads .* rollout\.vllm\.tp = 3"),
        (replace(CHOICE, actor=ActorSettings(tp=3)), r"do not divide over actor\.tp = 3"),
    ],
)
def test_what_the_machines_or_the_heads_rule_out_is_told(choice, said):
    check(SETUP, CHOICE)
    with pytest.raises(SpecError, match=said):
        check(SETUP, choice)


def test_a_gpu_without_fp8_is_not_asked_for_it():
    actor = ActorSettings(tp=4, dp=2, precision=Precision(compute="fp8"))
    fp8 = replace(SETUP, actor=actor)
    check(fp8, CHOICE)
    for ask in (lambda setup: check(setup, CHOICE), search):
        with pytest.raises(SpecError, match="a100 has no FP8 units"):
            ask(replace(fp8, cluster=Cluster(nodes=2, gpu=GPUS["a100"])))


def test_changes_of_experts_are_refused_as_the_run_would_refuse_them():
    mixture = replace(SETUP, architecture=describe(QWEN3_30B_A3B), actor=ActorSettings(lora=LoraSettings()))
    with pytest.raises(SpecError, match="has experts there"):
        check(mixture, replace(CHOICE, actor=ActorSettings(tp=4, dp=2, lora=LoraSettings())))
    with pytest.raises(SpecError, match="has experts there"):
        search(mixture)


def test_ranks_share_key_value_heads_evenly_or_not_at_all():
    assert [tp for tp in range(1, 17) if can_share(8, tp)] == [1, 2, 4, 8, 16]


def test_machines_that_hold_no_whole_group_more_are_told():
    sixes = replace(SETUP, cluster=Cluster(nodes=2, gpus_per_node=6))
    check(sixes, CHOICE)
    with pytest.raises(SpecError, match=r"3 rollout groups of 4 GPUs .* but 2 x 6 GPUs hold 2;"):
        check(sixes, replace(CHOICE, engines=Engines(4, 3)))
