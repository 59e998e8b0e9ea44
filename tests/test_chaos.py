"""Faults at every phase of a step, in a world of four ranks: noticed, told, over in seconds, and nothing is lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from megatron_rl.commands.exits import DONE
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from tests.attempts import attempt, check_end, steps_of
from tests.chaos import OF_RANKS, Fault, draws
from tests.test_launch import digest
from tests.test_processes import PP2, TP2, curves, rollouts, small_run

RANKS = 4
FAULTS = int(os.environ.get("CHAOS_FAULTS", "4"))
SEEDS = tuple(int(seed) for seed in os.environ.get("CHAOS_SEEDS", "0").split())
"""Of chains of so many faults: one run each, which goes on after every fault."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """What every attempt is told: all phases in every step, and all checkpoints kept."""
    held_out = tmp_path_factory.mktemp("held_out") / "held_out.parquet"
    write_prompts(held_out, Arithmetic(hardest=2).prompts(4, seed=1))
    every = ("schedule.save_every=1", "schedule.evaluate_every=1", "schedule.keep=1000")
    return (TP2, PP2, f"data.evaluate=[{held_out}]", *every)


@pytest.fixture(scope="module")
def undisturbed(config, usual, tmp_path_factory):
    """Gives the run that nothing happens to, once it has done so many steps."""
    runs = tmp_path_factory.mktemp("undisturbed")

    def after(steps: int) -> Path:
        if steps_of(runs) < steps:
            ended = attempt(config, runs, [], *usual, f"schedule.steps={steps}")
            assert ended.code == DONE, ended.said
        return runs / "run"

    return after


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_goes_on_after_every_fault_as_if_nothing_had_happened(undisturbed, config, usual, tmp_path, seed):
    faults, usual = draws(seed, FAULTS), (*usual, f"schedule.save_async={'true' if seed % 2 else 'false'}")
    while any(fault.is_deadly for fault in faults):
        deadly = next(place for place, fault in enumerate(faults) if fault.is_deadly)
        now, faults = faults[: deadly + 1], faults[deadly + 1 :]
        began, before = time.time(), steps_of(tmp_path)
        ended = attempt(config, tmp_path, now, *usual, "schedule.steps=100000")
        print(time.strftime("%T"), seed, "; ".join(map(str, now)), "|", ended.said.strip().splitlines()[-1], flush=True)
        reached = set(range(RANKS)) - ({now[-1].rank} if now[-1].kind == "kill" else set())
        check_end(now[-1], ended, tmp_path / "run" / "logs", sorted(reached), began)
        assert steps_of(tmp_path) >= before
    last = steps_of(tmp_path) + 2 * len(faults) + 1
    ended = attempt(config, tmp_path, faults, *usual, f"schedule.steps={last}")
    assert ended.code == DONE, ended.said
    assert sum(event["what"] == "strikes" for event in ended.events) == len(faults)
    assert ended.orphans == []
    ours, straight = tmp_path / "run", undisturbed(last)
    assert digest(ours, last) == digest(straight, last)
    for step in range(1, last + 1):
        assert rollouts(ours, step).table.equals(rollouts(straight, step).table)


def test_draws_are_a_seed_s_own_and_take_every_kind_in_turn():
    drawn = draws(3, 9)
    assert drawn == draws(3, 9) != draws(4, 9)
    assert sorted(fault.kind for fault in drawn) == ["kill"] * 3 + ["slow"] * 3 + ["stop"] * 3
    assert {fault.phase for fault in draws(0, 60)} == set(OF_RANKS)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_run_outlives_groups_of_its_engine_that_die_or_fall_silent_while_they_write_or_receive(config, tmp_path):
    groups = "rollout={vllm: {cache_gib: 0.0625, context: 128, replicas: 2, heartbeat_s: 5}}"
    struck = [("kill", "receive", 2), ("kill", "generate", 3), ("stop", "generate", 2), ("stop", "receive", 3)]
    faults = [Fault(kind=kind, phase=phase, rank=rank, delay_s=0.0) for kind, phase, rank in struck]
    ended = attempt(config, tmp_path, faults, TP2, groups, "schedule.steps=16")
    assert ended.code == DONE, ended.said
    assert sum(event["what"] == "strikes" for event in ended.events) == len(faults)
    assert "It is sent once more" in ended.said
    assert all(parity < 1e-4 for (parity,) in curves(tmp_path / "run", "parity/max"))
    assert ended.orphans == []
