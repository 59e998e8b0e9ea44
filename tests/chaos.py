"""Runs under fault: `python -m tests.chaos PLAN train CONFIG key=value …` is the command, with faults at named phases.

PLAN is a JSON file: the faults in order, the heartbeat, and a file that is told what happened and when. A fault strikes
one process of the run: `kill` ends it, `stop` makes it deaf for good, `slow` three times for less than a heartbeat, and
`cut` runs the command that cuts its machine off.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_rl import cli, launch
from megatron_rl.cluster import watch
from megatron_rl.cluster.member import Member
from megatron_rl.cluster.remote_sync import RemoteSync
from megatron_rl.cluster.worker_group import WorkerGroup
from megatron_rl.evaluate import HeldOut
from megatron_rl.rewards.pool import RewardPool
from megatron_rl.rollout.embedded import EmbeddedEngine
from megatron_rl.rollout.vllm_engine import VllmEngine
from megatron_rl.rollout.vllm_fleet import Fleet

PHASES = {
    "generate": ((EmbeddedEngine, "generate"), (VllmEngine, "generate")),
    "judge": ((RewardPool, "judge"),),
    "score": ((WorkerGroup, "score"),),
    "update": ((WorkerGroup, "update"),),
    "publish": ((RemoteSync, "publish"),),
    "evaluate": ((HeldOut, "evaluate"),),
    "save": ((WorkerGroup, "save"),),
    "receive": ((VllmEngine, "finish"),),
}
SECOND = {"publish": 3, "receive": 3}
"""Which call of a phase is struck, else the second; weights are published once before the first step."""
OF_RANKS = tuple(phase for phase in PHASES if phase != "receive")
"""Phases that every run of several ranks has."""
NAP, WAKE_S = 0.6, 0.5
"""Of a heartbeat, how long a slow process is deaf at a time, and how long it then hears."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Fault(kind="stop", phase="update", rank=2, delay_s=0.1); ranks from `ranks` on are groups of the engine."""

    kind: str
    phase: str
    rank: int
    delay_s: float
    """From the phase's beginning."""

    @property
    def is_deadly(self) -> bool:
        return self.kind != "slow"

    def __str__(self) -> str:
        return f"{self.kind} {self.rank} in {self.phase} after {self.delay_s:.2f} s"


def draws(seed: int, count: int, ranks: int = 4, phases: Sequence[str] = OF_RANKS) -> list[Fault]:
    """Every kind as often as any other, phases and ranks by chance."""
    chance = random.Random(seed)
    kinds = (["kill", "stop", "slow"] * count)[:count]
    chance.shuffle(kinds)
    return [
        Fault(kind=kind, phase=chance.choice(phases), rank=chance.randrange(ranks), delay_s=chance.uniform(0.0, 0.4))
        for kind in kinds
    ]


@dataclass(kw_only=True)
class Saboteur:
    """Sits in the driver, strikes other processes, and writes down when."""

    faults: list[Fault]
    heartbeat_s: float
    events: Path
    cut: Sequence[str] = ()
    """The command that cuts a machine off."""
    pids: Callable[[], Sequence[int]] = tuple
    calls: int = 0
    """Of the next fault's phase, in this process since the fault before."""
    is_striking: bool = False

    def tell(self, what: str, **facts: object) -> None:
        with self.events.open("a") as file:
            file.write(json.dumps({"what": what, "at": time.time(), **facts}) + "\n")

    def enters(self, phase: str) -> None:
        if self.is_striking or not self.faults or self.faults[0].phase != phase:
            return
        self.calls += 1
        if self.calls == SECOND.get(phase, 2):
            fault, self.calls, self.is_striking = self.faults.pop(0), 0, True
            threading.Thread(target=self.strike, args=(fault,), daemon=True).start()

    def strike(self, fault: Fault) -> None:
        time.sleep(fault.delay_s)
        pid = self.pids()[fault.rank]
        self.tell("strikes", pid=pid, fault=asdict(fault))
        if fault.kind == "kill":
            os.kill(pid, signal.SIGKILL)
        elif fault.kind == "stop":
            os.kill(pid, signal.SIGSTOP)
        elif fault.kind == "cut":
            subprocess.run(self.cut, check=True)
        else:
            for _ in range(3):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(NAP * self.heartbeat_s)
                os.kill(pid, signal.SIGCONT)
                time.sleep(WAKE_S)
        self.is_striking = False


def install(saboteur: Saboteur) -> None:
    """Puts it at the beginning of each phase, and where processes are started and given up."""
    for phase, places in PHASES.items():
        for owner, name in places:
            before(owner, name, lambda *_, phase=phase: saboteur.enters(phase))
    members, fleets = list[Member](), list[Fleet]()
    before(WorkerGroup, "__init__", lambda _, found, *__: members.extend(found))
    before(Fleet, "start", lambda fleet, *_: fleets.append(fleet))
    before(watch, "dump_stacks", lambda *_: saboteur.tell("notices"))
    before(launch, "close", lambda *_: saboteur.tell("closes"))

    def pids() -> list[int]:
        return [*(one.pid for one in members), *(berth.group.pid for fleet in fleets for berth in fleet.berths)]

    saboteur.pids = pids


def before(owner: Any, name: str, tell: Callable[..., None]) -> None:
    """From here on calls of this function are told of before they are made."""
    call = getattr(owner, name)

    @functools.wraps(call)
    def told(*arguments: Any, **named: Any) -> Any:
        tell(*arguments)
        return call(*arguments, **named)

    setattr(owner, name, told)


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    install(
        Saboteur(
            faults=[Fault(**fault) for fault in plan["faults"]],
            heartbeat_s=plan["heartbeat_s"],
            events=Path(plan["events"]),
            cut=plan["cut"],
        )
    )
    sys.exit(cli.main(sys.argv[2:]))
