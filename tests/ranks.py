"""Four gloo ranks that live as long as the test session and run functions on worlds of 1, 2 or 4.

    results = ranks.run(program, world=2, parallel={"tp": 2})     # one result a rank, in rank order

`program` is a function of an importable module, called on every rank as `program(**arguments)` after the ranks joined
and before they part; it divides them with `groups.cut` as it likes. Arguments and results are plain: numbers, strings,
containers, numpy arrays. A call costs milliseconds: the imports, which take seconds, are paid once, by one process that
the ranks are forked from.
"""

import atexit
import faulthandler
import functools
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

WORLD = 4
START_S = 300.0
"""How long the ranks may take to import what they need, all at once on a busy machine."""
GRACE_S = 10.0
"""How long the other ranks may take to notice that one of them failed, before the pool is given up."""


class RankFailure(AssertionError):
    """What went wrong on the first rank that failed, hung or died."""


class Call(NamedTuple):
    """One function call on the first `world` ranks."""

    program: Callable[..., Any]
    arguments: dict[str, Any]
    world: int
    rendezvous: str
    timeout_s: float


class Answer(NamedTuple):
    """What a rank sends back: a result, or the traceback that came instead."""

    result: Any = None
    failure: str = ""
    at: float = 0.0
    """When it failed, on the machine's clock: of the ranks that fail together, the first one holds the reason."""


def run(program: Callable[..., Any], world: int, timeout_s: float = 120.0, **arguments: Any) -> list[Any]:
    """The result of every rank; RankFailure with the first failing rank's traceback, or with hung ranks' stacks."""
    return _pool().run(program, world, timeout_s, arguments)


class RankPool:
    """Starts its ranks at the first call, and again at the first call after it had to give them up."""

    def __init__(self, size: int = WORLD) -> None:
        self.size = size
        self.processes: list[ForkServerProcess] = []
        self.connections: list[Connection] = []
        self.calls = 0

    def run(self, program: Callable[..., Any], world: int, timeout_s: float, arguments: dict[str, Any]) -> list[Any]:
        self.calls += 1
        try:
            if not self.processes:
                self.start()
            call = Call(program, arguments, world, str(self.folder / f"rendezvous_{self.calls}"), timeout_s)
            for connection in self.connections[:world]:
                connection.send(call)
            answers = self.gather(world, timeout_s)
        except BaseException:
            self.close()
            raise
        failed = sorted((answer.at, rank, answer.failure) for rank, answer in answers.items() if answer.failure)
        if failed:
            # Once in a hundred times, gloo waits for ever where ranks join again after one of them left too soon.
            self.close()
            _, rank, failure = failed[0]
            raise RankFailure(f"rank {rank} of {world} failed first:\n{failure}")
        return [answers[rank].result for rank in range(world)]

    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ranks_"))
        forks = get_context("forkserver")
        forks.set_forkserver_preload(["tests.ranks_imports"])
        for rank in range(self.size):
            ours, theirs = forks.Pipe()
            # A daemon may have no children; an end of file ends a rank.
            process = forks.Process(target=_serve, args=(rank, theirs, self.log(rank)), daemon=False)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)
        self.gather(self.size, START_S)

    def log(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.log"

    def gather(self, world: int, timeout_s: float) -> dict[int, Answer]:
        """Answers in the order they came: all of them, or fewer where one failed and others could not follow."""
        deadline = time.monotonic() + timeout_s
        answers: dict[int, Answer] = {}
        while waiting := [rank for rank in range(world) if rank not in answers]:
            ready = wait([self.connections[rank] for rank in waiting], max(0.0, deadline - time.monotonic()))
            if not ready and any(answer.failure for answer in answers.values()):
                return answers
            if not ready:
                raise RankFailure(
                    f"ranks {waiting} of {world} gave no answer in {timeout_s} s:\n{self.stacks(waiting)}"
                )
            for rank in waiting:
                if self.connections[rank] in ready:
                    answers[rank] = self.receive(rank, world)
                    if answers[rank].failure:
                        deadline = min(deadline, time.monotonic() + GRACE_S)
        return answers

    def receive(self, rank: int, world: int) -> Answer:
        try:
            answer: Answer = self.connections[rank].recv()
        except (EOFError, ConnectionResetError):
            self.processes[rank].join(GRACE_S)
            code = self.processes[rank].exitcode
            raise RankFailure(f"rank {rank} of {world} died with exit code {code}:\n{self.tail(rank)}") from None
        return answer

    def stacks(self, waiting: list[int]) -> str:
        """Where the hung ranks stand."""
        for rank in waiting:
            os.kill(self.processes[rank].pid or 0, signal.SIGUSR1)
        time.sleep(0.5)
        return "\n".join(f"--- rank {rank}\n{self.tail(rank)}" for rank in waiting)

    def tail(self, rank: int) -> str:
        return "\n".join(self.log(rank).read_text(errors="replace").splitlines()[-120:])

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process, connection in zip(self.processes, self.connections, strict=True):
            process.join()
            connection.close()
        self.processes, self.connections = [], []


@functools.cache
def _pool() -> RankPool:
    pool = RankPool()
    atexit.register(pool.close)
    return pool


def _serve(rank: int, connection: Connection, log: Path) -> None:
    """The life of a rank: say that it is ready, then answer calls until the session that started it is gone."""
    with log.open("a", buffering=1) as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
        faulthandler.register(signal.SIGUSR1, file=stream, all_threads=True)
        import tests.ranks_imports  # noqa: F401  the session itself never pays for these

        connection.send(Answer())
        while True:
            try:
                call: Call = connection.recv()
            except EOFError:
                return
            connection.send(_answer(rank, call))


def _answer(rank: int, call: Call) -> Answer:
    import torch.distributed as dist

    from megatron_rl.actor import groups

    try:
        # Past the session's own deadline, so that it finds hung ranks where they hang.
        gloo_s = call.timeout_s + 2 * GRACE_S
        groups.join(rank, call.world, dist.FileStore(call.rendezvous, call.world), timeout_s=gloo_s)
        answer = Answer(result=call.program(**call.arguments))
    except BaseException:  # noqa: BLE001  whatever stopped the program is what the session must be told
        answer = Answer(failure=traceback.format_exc(), at=time.monotonic())
    if dist.is_initialized():
        groups.leave()
    return answer
