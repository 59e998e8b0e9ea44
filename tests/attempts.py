"""The command as a process of its own, under the faults of `tests.chaos`, and how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from megatron_rl.commands.exits import FAILED
from tests.chaos import Fault

HEARTBEAT_S = 10.0
LOOK_S, MOST_S = 0.5, 400.0
"""An attempt that is looked at so long hangs; while the machine stands still nobody looks."""


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


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Where the command runs, and how a fault of the kind `cut` is done from there: `Inside(enter=["nsenter", …])`."""

    enter: Sequence[str] = ()
    cut: Sequence[str] = ()


def attempt(config: Path, runs: Path, faults: list[Fault], *settings: str, inside: Inside | None = None) -> Attempt:
    """Runs it to its end."""
    inside, plan, events = inside or Inside(), runs / "plan.json", runs / "events.jsonl"
    runs.mkdir(parents=True, exist_ok=True)
    events.write_text("")
    told = {"faults": [asdict(one) for one in faults], "heartbeat_s": HEARTBEAT_S, "events": str(events)}
    plan.write_text(json.dumps({**told, "cut": list(inside.cut)}))
    command = [*inside.enter, sys.executable, "-m", "tests.chaos", str(plan), "train", str(config)]
    chosen = [f"run.folder={runs}", "run.name=run", f"cluster.heartbeat_s={HEARTBEAT_S}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (runs / "said.txt").open("w+") as said:
        process = subprocess.Popen(
            [*command, *chosen, *settings],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        family = _until_its_end(process)
    ended = time.time()
    return Attempt(
        code=process.returncode,
        said=(runs / "said.txt").read_text(),
        events=[json.loads(line) for line in events.read_text().splitlines()],
        ended=ended,
        orphans=psutil.wait_procs(family, timeout=30)[1],
    )


def _until_its_end(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All that it started."""
    family: dict[int, psutil.Process] = {}
    looks = 0
    while process.poll() is None:
        if (looks := looks + 1) * LOOK_S > MOST_S:
            process.kill()
        family |= {one.pid: one for one in psutil.Process(process.pid).children(recursive=True)}
        time.sleep(LOOK_S)
    return list(family.values())


def check_end(fault: Fault, ended: Attempt, logs: Path, reached: Sequence[int], began: float) -> None:
    """A fault that no run outlives was noticed in time, told in a sentence, and left nothing behind."""
    assert ended.code == FAILED, ended.said
    struck, noticed = ended.at("strikes"), ended.at("notices")
    assert noticed - struck < 2 * HEARTBEAT_S + 2, ended.events
    assert ended.ended - noticed < 30
    sentence = next(line for line in ended.said.strip().splitlines() if "failed" in line)
    assert f"rank {fault.rank} (process" in sentence, ended.said
    for rank in reached:
        log = logs / f"rank_{rank:04d}.log"
        assert log.stat().st_mtime > began
        assert "most recent call first" in log.read_text(errors="replace").rpartition("--- ")[2], log
    assert ended.orphans == []


def steps_of(runs: Path) -> int:
    """Of the last checkpoint."""
    pointer = runs / "run" / "checkpoints" / "latest"
    return int(pointer.read_text().split(" ")[0].split("_")[1]) if pointer.exists() else 0
