from dataclasses import replace

import pytest

from megatron_rl.actor import fit
from megatron_rl.actor.architecture import describe
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.report import overrides
from megatron_rl.planner.search import choices, predict, search
from megatron_rl.spec.schema import SpecError
from tests.planner.configs import LLAMA_70B, LLAMA_405B, QWEN3_8B, QWEN3_30B_A3B, QWEN3_32B

JOB = Job(prompts=128, samples=8, lengths=Lengths(mean=1000, most=3072))


def setup(config: object, nodes: int) -> Setup:
    return Setup(architecture=describe(config), cluster=Cluster(nodes=nodes), job=JOB)  # type: ignore[arg-type]


@pytest.mark.parametrize(("config", "nodes"), [(QWEN3_8B, 1), (QWEN3_32B, 4), (QWEN3_30B_A3B, 4), (LLAMA_70B, 8)])
def test_what_is_found_fits_fills_the_machines_and_can_be_cut(config, nodes):
    asked = setup(config, nodes)
    for one in search(asked):
        actor, engines = one.choice.actor, one.choice.engines
        fit.check(asked.architecture, actor)
        assert not one.memory.refusal(asked.job.longest)
        apart = one.choice.placement == "split"
        assert actor.world + engines.gpus * apart == asked.cluster.gpus
        assert actor.update.microbatch_tokens >= asked.job.longest
        assert actor.tp <= 8
        assert engines.tp <= 8


def test_the_first_is_about_the_fastest():
    ranked = search(setup(QWEN3_8B, 2), best=8)
    assert len(ranked) == 8
    assert ranked[0].seconds < 1.06 * min(one.seconds for one in ranked)


def test_a_group_never_stands_on_two_machines():
    asked = replace(setup(QWEN3_8B, 2), cluster=Cluster(nodes=2, gpus_per_node=6))
    assert {choice.engines.tp for choice, _ in choices(asked)} <= {1, 2}


def test_lagging_rollouts_want_machines_of_their_own():
    asked = setup(QWEN3_8B, 4)
    ranked = search(replace(asked, job=replace(JOB, ahead=1)))
    assert {one.choice.placement for one in ranked} == {"split"}


@pytest.mark.parametrize("config", [QWEN3_30B_A3B, LLAMA_70B], ids=["mixture", "dense"])
def test_a_thousand_gpus_are_planned_whole(config):
    ranked = search(replace(setup(config, 128), job=replace(JOB, prompts=1024)))
    assert ranked[0].choice.actor.world == 1024


def test_ranks_share_sequences_that_no_cut_fits_whole():
    asked = setup({**QWEN3_8B, "max_position_embeddings": 2**20}, 2)
    endless = replace(asked, job=Job(prompts=32, samples=8, lengths=Lengths(mean=131072, most=524288)))
    first, *_ = search(endless)
    actor = first.choice.actor
    assert (actor.cp, actor.world) == (2, 16)
    assert "actor.cp=2" in overrides(endless, first)
    assert {one.choice.actor.cp for one in search(asked)} == {1}


def test_layers_that_do_not_divide_are_cut_into_uneven_stages():
    # The ends of a pipeline have the vocabulary, so the stages between them get the odd layers.
    uneven = {choice.actor.stage_layers for choice, _ in choices(setup(QWEN3_8B, 2)) if choice.actor.pp == 8}
    assert uneven == {(4, 4, 5, 5, 5, 5, 4, 4)}


@pytest.mark.parametrize(
    ("config", "nodes", "said"),
    [
        (LLAMA_70B, 1, "learning needs 149.3 GiB of 73.6 on stage 0"),
        (LLAMA_405B, 128, "a rollout group stands on one machine, and weights of 756 GiB leave no room"),
    ],
)
def test_the_impossible_is_refused_with_the_reason(config, nodes, said):
    with pytest.raises(SpecError, match="nothing fits") as refused:
        search(setup(config, nodes))
    assert said in str(refused.value)


def test_one_choice_is_predicted_or_refused():
    asked = setup(QWEN3_8B, 1)
    actor = ActorSettings(tp=2, dp=4, update=UpdateSettings(microbatch_tokens=4096))
    assert predict(asked, Choice(actor=actor, engines=Engines(2, 4))).seconds > 0
    with pytest.raises(SpecError, match=r"actor dp=8 with 8 engines of tp=1, colocated, does not fit: learning needs"):
        predict(
            asked,
            Choice(
                actor=replace(actor, tp=1, dp=8, update=UpdateSettings(microbatch_tokens=65536)), engines=Engines(1, 8)
            ),
        )
    with pytest.raises(SpecError, match="do not divide over actor"):
        predict(asked, Choice(actor=replace(actor, tp=3), engines=Engines(2, 4)))
