from dataclasses import replace
from pathlib import Path

from megatron_rl.actor.architecture import describe
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Job, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.report import memory_share, overrides, report, sbatch
from megatron_rl.planner.search import search
from megatron_rl.spec.load import load
from tests.planner.configs import QWEN3_8B, QWEN3_30B_A3B

GRPO = Path(__file__).parents[2] / "configs/grpo.yaml"
JOB = Job(prompts=128, samples=8, lengths=Lengths(mean=1000, most=3072))
SETUP = Setup(architecture=describe(QWEN3_8B), cluster=Cluster(nodes=2), job=JOB)


def test_every_part_of_memory_and_time_is_told():
    ranked = search(SETUP)
    told = "\n".join(report(SETUP, ranked))
    for word in ("8.19 billion", "1024 rows", "gradients", "optimizer", "cache", "longest response", "sync:", "PFLOP"):
        assert word in told
    assert told.count("colocated") + told.count("split") == len(ranked)


def test_the_settings_of_every_choice_load():
    for config in (QWEN3_8B, QWEN3_30B_A3B):
        setup = replace(SETUP, architecture=describe(config))
        for one in search(setup, best=6):
            spec = load(GRPO, overrides(setup, one))
            given = spec.settings["actor"].values
            assert (given["tp"], given["pp"], given["dp"]) == tuple(
                getattr(one.choice.actor, name) for name in ("tp", "pp", "dp")
            )
            assert spec.choices["rollout"].values["memory_share"] == memory_share(setup, one) > 0


def test_engines_sleep_only_beside_the_actor():
    for one in search(replace(SETUP, sleeps=True), best=6):
        spec = load(GRPO, overrides(replace(SETUP, sleeps=True), one))
        assert spec.choices["rollout"].values["sleep"] is (one.choice.placement == "colocated")


def test_uneven_stages_survive_the_shell():
    line = sbatch(SETUP, "configs/grpo.yaml", ["actor.tp=1", "actor.stage_layers=[4,5]", "actor.tp=2"])
    assert line == (
        "sbatch --nodes 2 --gpus-per-node 8 slurm/train.sbatch configs/grpo.yaml actor.tp=2 'actor.stage_layers=[4,5]'"
    )
