"""Faults at every phase of a step, in a world of four ranks: noticed, told, over in seconds, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest

from megatron_rl.commands.exits import DONE, FAILED
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from tests.chaos import OF_RANKS, Fault, draws
from tests.test_launch import digest
from tests.test_processes import PP2, TP2, curves, rollouts, small_run

HEARTBEAT_S = 10.0
RANKS = 4
LOOK_S, MOST_S = 0.5, 400.0
"""An attempt that is looked at so long hangs; while the machine stands still nobody looks."""
FAULTS = int(os.environ.get("CHAOS_FAULTS", "4"))
SEEDS = tuple(int(seed) for seed in os.environ.get("CHAOS_SEEDS", "0").split())
"""Of chains of so many faults: one run each, which goes on after every fault."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One process of the command, as it ended."""

    code: int
    said: str
    events: list[dict]
    ended: float
    orphans: list[psutil.Process]

    def at(self, what: str) -> float:
        """When this first happened after the last fault."""
        struck = [event["at"] for event in self.events if event["what"] == "strikes"][-1]
        return next(event["at"] for event in self.events if event["what"] == what and event["at"] >= struck)


def attempt(
    config: Path, runs: Path, faults: list[Fault], *settings: str, cut: tuple[str, ...] = (TP2, PP2)
) -> Attempt:
    plan, events = runs / "plan.json", runs / "events.jsonl"
    runs.mkdir(parents=True, exist_ok=True)
    events.write_text("")
    plan.write_text(
        json.dumps({"faults": [asdict(one) for one in faults], "heartbeat_s": HEARTBEAT_S, "events": str(events)})
    )
    command = [sys.executable, "-m", "tests.chaos", str(plan), "train", str(config)]
    chosen = [f"run.folder={runs}", "run.name=run", *cut, f"cluster.heartbeat_s={HEARTBEAT_S}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (runs / "said.txt").open("w+") as said:
        process = subprocess.Popen(
            [*command, *chosen, *settings],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        family: dict[int, psutil.Process] = {}
        looks = 0
        while process.poll() is None:
            if (looks := looks + 1) * LOOK_S > MOST_S:
                process.kill()
            family |= {one.pid: one for one in psutil.Process(process.pid).children(recursive=True)}
            time.sleep(LOOK_S)
    ended = time.time()
    orphans = psutil.wait_procs(family.values(), timeout=30)[1]
    told = [json.loads(line) for line in events.read_text().splitlines()]
    return Attempt(
        code=process.returncode, said=(runs / "said.txt").read_text(), events=told, ended=ended, orphans=orphans
    )


def check_end(fault: Fault, ended: Attempt, runs: Path, began: float) -> None:
    """A fault that no run outlives was noticed in time, told in a sentence, and left nothing behind."""
    assert ended.code == FAILED, ended.said
    struck, noticed = ended.at("strikes"), ended.at("notices")
    assert noticed - struck < 2 * HEARTBEAT_S + 2, ended.events
    assert ended.ended - noticed < 30
    last = ended.said.strip().splitlines()
    sentence = next(line for line in last if "failed" in line)
    assert f"rank {fault.rank} (process" in sentence, ended.said
    for rank in set(range(RANKS)) - ({fault.rank} if fault.kind == "kill" else set()):
        log = runs / "run" / "logs" / f"rank_{rank:04d}.log"
        assert log.stat().st_mtime > began
        assert "most recent call first" in log.read_text(errors="replace").rpartition("--- ")[2], log
    assert ended.orphans == []


def steps_of(runs: Path) -> int:
    pointer = runs / "run" / "checkpoints" / "latest"
    return int(pointer.read_text().split(" ")[0].split("_")[1]) if pointer.exists() else 0


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """What every attempt is told: all phases in every step, and all checkpoints kept."""
    held_out = tmp_path_factory.mktemp("held_out") / "held_out.parquet"
    write_prompts(held_out, Arithmetic(hardest=2).prompts(4, seed=1))
    every = ("schedule.save_every=1", "schedule.evaluate_every=1", "schedule.keep=1000")
    return (f"data.evaluate=[{held_out}]", *every)


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
    faults = draws(seed, FAULTS)
    while any(fault.is_deadly for fault in faults):
        deadly = next(place for place, fault in enumerate(faults) if fault.is_deadly)
        now, faults = faults[: deadly + 1], faults[deadly + 1 :]
        began, before = time.time(), steps_of(tmp_path)
        ended = attempt(config, tmp_path, now, *usual, "schedule.steps=100000")
        print(time.strftime("%T"), seed, "; ".join(map(str, now)), "|", ended.said.strip().splitlines()[-1], flush=True)
        check_end(now[-1], ended, tmp_path, began)
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
    ended = attempt(config, tmp_path, faults, groups, "schedule.steps=16", cut=(TP2,))
    assert ended.code == DONE, ended.said
    assert sum(event["what"] == "strikes" for event in ended.events) == len(faults)
    assert "It is sent once more" in ended.said
    assert all(parity < 1e-4 for (parity,) in curves(tmp_path / "run", "parity/max"))
    assert ended.orphans == []
