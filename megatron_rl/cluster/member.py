"""One rank as the driver sees it: its process, its machine, its log, and how to learn where it stands."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from megatron_rl.cluster.rank import STACKS

SETTLE_S = 0.5
"""How long a process may take to write its stacks."""
REACH_S = 10.0
"""How long another machine may take to pass a signal on."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """Member(rank=1, actor=..., pid=4711, machine="gpu-17", node_id="8174…", log=Path("logs/rank_0001.log"))."""

    rank: int
    actor: ActorHandle
    pid: int
    machine: str
    node_id: str
    """Ray's name for the machine."""
    log: Path

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.machine})"

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"({error})"

    def kill(self) -> None:
        ray.kill(self.actor)


def dump_stacks(members: Sequence[Member]) -> None:
    """Every process that still is writes where it stands into its log, also one that was stopped."""
    here = socket.gethostname()
    request_stacks([member.pid for member in members if member.machine == here])
    others = {member.node_id for member in members if member.machine != here}
    tasks = [_request_from(node_id, [one.pid for one in members if one.node_id == node_id]) for node_id in others]
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=REACH_S)
    time.sleep(SETTLE_S)


def request_stacks(pids: Sequence[int]) -> None:
    """Signals these processes of this machine; one that was stopped is let go on, so that it can answer."""
    for pid in pids:
        for number in (STACKS, signal.SIGCONT):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break


def _request_from(node_id: str, pids: Sequence[int]) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(request_stacks).options(scheduling_strategy=there).remote(pids)
