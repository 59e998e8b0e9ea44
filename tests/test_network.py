"""A machine that the network loses: the run ends in bounded time, says which it was, and goes on when it is back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_rl.commands.exits import DONE
from tests.apart import PORT, two_machines
from tests.attempts import Attempt, Inside, attempt, check_end, steps_of
from tests.chaos import Fault
from tests.test_launch import digest
from tests.test_processes import APART, PP2, rollouts, small_run

CUTS = (("generate", 0), ("update", 1), ("publish", 0), ("save", 1))
"""In which phase, and at which machine's end: the first is the driver's, which also has rank 0."""
EVERY = ("schedule.save_every=1", "schedule.keep=1000", PP2)


def on_two_machines(config: Path, runs: Path, faults: list[Fault], place: int, *settings: str) -> Attempt:
    """An attempt whose rank 1 stands on the other machine, as it ended; a fault cuts the cable at this end."""
    began = time.time()
    with two_machines() as machines:
        near, far = machines
        there = (APART, f"cluster.address={near.host}:{PORT}", "cluster.machines=2")
        inside = Inside(enter=near.enter, cut=machines[place].cut)
        ended = attempt(config, runs, faults, *there, *EVERY, *settings, inside=inside)
        assert near.processes("RankHost") == []
        for fault in faults:
            noticed, over = (moment - ended.at("strikes") for moment in (ended.at("notices"), ended.ended))
            print(f"{fault} at end {place}: noticed after {noticed:.1f} s, over after {over:.1f} s", flush=True)
            print(ended.said.strip().splitlines()[-1], flush=True)
            check_end(fault, ended, runs / "run" / "logs", [0], began)
            assert f"{far.name} could not be reached, all other stacks were saved" in ended.said
        return ended


def cut_off(phase: str) -> Fault:
    return Fault(kind="cut", phase=phase, rank=1, delay_s=0.1)


@pytest.mark.slow
def test_a_run_goes_on_after_every_cut_as_if_nothing_had_happened(tmp_path):
    config, runs = small_run(tmp_path), tmp_path / "runs"
    for phase, place in CUTS:
        before = steps_of(runs)
        on_two_machines(config, runs, [cut_off(phase)], place, "schedule.steps=100000")
        assert steps_of(runs) >= before
    last = steps_of(runs) + 1
    assert on_two_machines(config, runs, [], 0, f"schedule.steps={last}").code == DONE
    alone = tmp_path / "alone"
    assert attempt(config, alone, [], *EVERY, f"schedule.steps={last}").code == DONE
    assert digest(runs / "run", last) == digest(alone / "run", last)
    for step in range(1, last + 1):
        assert rollouts(runs / "run", step).table.equals(rollouts(alone / "run", step).table)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("phase", ["generate", "receive"])
def test_a_group_of_the_engine_that_is_cut_off_too_holds_the_end_up_no_longer(tmp_path, phase):
    groups = "rollout={vllm: {cache_gib: 0.0625, context: 128, replicas: 2}}"
    on_two_machines(small_run(tmp_path), tmp_path / "runs", [cut_off(phase)], 1, groups, "schedule.steps=100000")
