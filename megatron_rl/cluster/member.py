"""One rank as the driver sees it: its process, its machine, its log, and how to learn where it stands.

Nothing heavy is imported here: what asks another machine's processes for their stacks has seconds there.
"""

import os
import signal
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from megatron_rl.beside import all_beside
from megatron_rl.logs import newest

STACKS = signal.SIGUSR1
"""Writes the stacks of all threads into a rank's log, whatever the process is doing."""
SETTLE_S = 0.5
"""How long a process may take to write its stacks."""
FATAL, MODULES = "Fatal Python error:", "Extension modules:"
"""How what Python says of a deadly signal begins, and its last line, which is long and explains nothing."""
STACK_LINES = 40
"""Of what it says between them."""
REACH_S = 10.0
"""How long another machine may take to pass a signal on."""
KNOCK_S = 3.0
"""How long it may take to open its door; one that the network has lost does not, and nothing is asked of it."""
KNOCKS = 64
"""Machines that are knocked at side by side."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One rank: Member(rank=1, pid=4711, machine="gpu-17", log=Path("logs/rank_0001.log"), …)."""

    rank: int
    actor: ActorHandle
    pid: int
    machine: str
    node_id: str
    """Ray's name for the machine."""
    door: tuple[str, int]
    """Where Ray listens on it."""
    log: Path

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.machine})"

    def last_words(self, lines: int = 15) -> str:
        """The end of its log; of a process that a signal ended which, and where it stood."""
        try:
            said = newest(self.log)
        except OSError as error:
            return f"({error})"
        died = [number for number, line in enumerate(said) if line.startswith(FATAL)]
        told = said[died[-1] :][:STACK_LINES] if died else said[-lines:]
        return "\n".join(line for line in told if not line.startswith(MODULES)).rstrip()

    def kill(self) -> None:
        ray.kill(self.actor)


def dump_stacks(members: Sequence[Member]) -> str:
    """Every process that still is writes where it stands into its log, also one that was stopped; says whose did.

    Of a machine that the network has lost nothing is known.
    """
    here = socket.gethostname()
    request_stacks([member.pid for member in members if member.machine == here])
    others = list({member.node_id: member for member in members if member.machine != here}.values())
    opened = all_beside(opens, [other.door for other in others], threads=KNOCKS)
    asked = {
        _request_from(other.node_id, [one.pid for one in members if one.node_id == other.node_id]): other.machine
        for other, is_open in zip(others, opened, strict=True)
        if is_open
    }
    lost = sorted({other.machine for other in others} - {asked[ref] for ref in _done(asked)})
    time.sleep(SETTLE_S)
    return f"{', '.join(lost)} could not be reached, all other stacks were saved" if lost else "all stacks were saved"


def request_stacks(pids: Sequence[int]) -> None:
    """Signals these processes of this machine; one that was stopped is let go on, so that it can answer."""
    for pid in pids:
        for number in (STACKS, signal.SIGCONT):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break


def opens(door: tuple[str, int]) -> bool:
    """Whether somebody listens there; Ray alone would be asked in vain for as long as a busy machine may take."""
    try:
        socket.create_connection(door, KNOCK_S).close()
    except OSError:
        return False
    return True


def _done(tasks: Collection[ray.ObjectRef]) -> set[ray.ObjectRef]:
    """Those that came to an end in time, and to a good one."""
    done = set[ray.ObjectRef]()
    for ref in ray.wait(list(tasks), num_returns=len(tasks), timeout=REACH_S)[0] if tasks else ():
        with suppress(RayError):
            ray.get(ref)
            done.add(ref)
    return done


def _request_from(node_id: str, pids: Sequence[int]) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(request_stacks).options(scheduling_strategy=there).remote(pids)
