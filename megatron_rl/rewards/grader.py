"""The process that grades: `python -m megatron_rl.rewards.grader FD`, FD being a socket to the pool.

It builds the reward once and then only forks. The pool sends a command a line and waits for its answer:

    {"target": ..., "given": {...}, "memory_bytes": ..., "cpu_s": ...}   ->  {"ready": true} or {"error": "..."}
    {"command": "start"} with a socket attached                          ->  {"pid": 4711}
    {"command": "end", "pid": 4711}                                      ->  {"ended": 4711}

Each fork reads questions from its socket and answers them one by one. A fork is a few milliseconds, where importing the
mathematics again would be a second; and nothing forks torch, because this process never imports it. A dead fork stays
unreaped until the pool says `end`, so that its number cannot name another process. What a fork started may serve many
answers and ends with the fork: as long as it lives it adopts what its helpers leave behind, and afterwards this process
does. What forks print is passed on to stderr in measure. When the pool goes, however it goes, the socket ends, and
everything here with it.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import inspect
import io
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeGuard, cast

from megatron_rl.answers import Question, Score
from megatron_rl.chatter import Chatter
from megatron_rl.orphans import adopt, children, end_children, ended
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import Part

FUNCTIONS: Final = "megatron_rl.rewards.function:Function"
LONGEST_EXTRACT: Final = 1000
RETIRES_AFTER: Final = 2000
"""Questions a fork answers before a fresh one takes over: whatever a library keeps cannot pile up."""
MOST_ENDED: Final = 100
"""Ended processes that a fork's helpers left to it, with which it makes room for a fresh one."""
LEAVES_S: Final = 10.0
"""How long what a user's module does at the interpreter's end may take."""
_NO_FILES: Final = (errno.EMFILE, errno.ENFILE)
_PR_SET_PDEATHSIG: Final = 1
_ORPHAN_CHECK_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one fork may take."""

    memory_bytes: int
    cpu_s: int
    """Processor seconds for one question."""


def main(descriptor: int) -> None:
    """Builds the reward, then starts and ends forks until the pool hangs up."""
    # A job that is stopped signals each of its processes; this one ends when the pool does. A handler, since what is
    # ignored would stay ignored in programs that a reward starts.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    adopt()
    atexit.register(end_children, frozenset())  # last of all: a user's own clean-up comes first
    pool = socket.socket(fileno=descriptor)
    parent = os.getppid()
    chatter = Chatter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # forks end without a last flush
    order = json.loads(pool.makefile("rb").readline())
    try:
        reward = reward_of(order["target"], order["given"])
    except Exception as error:  # noqa: BLE001  # whatever a user's module raises is the pool's to report
        pool.sendall(_line({"error": f"{type(error).__name__}: {error}"}))
        return
    limits = Limits(memory_bytes=order["memory_bytes"], cpu_s=order["cpu_s"])
    gc.freeze()
    pool.sendall(_line({"ready": True}))
    forks: set[int] = set()
    shared = children()  # helpers of the reward's own that serve all forks
    try:
        while (received := _command(pool, parent, chatter)) is not None:
            command, attached = received
            if command["command"] == "start":
                pid = _fork((pool, chatter), attached, reward, limits)
                forks.add(pid)
                pool.sendall(_line({"pid": pid}))
            else:
                pid = int(cast(int, command["pid"]))
                forks.discard(pid)
                _end(pid)
                shared |= end_children(forks | shared)  # nor is what would not go killed again
                pool.sendall(_line({"ended": pid}))
    finally:
        _leave_in_time()
        for pid in forks:
            _end(pid)
        chatter.pass_on()


def _leave_in_time() -> None:
    def leave() -> None:
        end_children(frozenset())
        os._exit(1)

    last = threading.Timer(LEAVES_S, leave)
    last.daemon = True
    last.start()


def reward_of(target: str, given: dict[str, object]) -> object:
    """The reward `package.module:Name`: an instance of the class, or the user's function as a reward."""
    found = build(Part(path="reward", name=target, target=target, given=given, values=given, place="the reward"))
    return reward_of(FUNCTIONS, {"path": target, **given}) if inspect.isroutine(found) else found


def _command(pool: socket.socket, parent: int, chatter: Chatter) -> tuple[dict[str, object], list[int]] | None:
    """The next command and the sockets that came with it; None once the pool is gone."""
    ears: list[socket.socket | Chatter] = [pool, chatter]
    while pool not in (ready := select.select(ears, [], [], _ORPHAN_CHECK_S)[0]):
        if chatter in ready:
            chatter.pass_on()
        if os.getppid() != parent:
            return None
    try:
        data, attached, _, _ = socket.recv_fds(pool, 4096, 1)
    except ConnectionError:
        return None
    return (json.loads(data), list(attached)) if data else None


def _fork(ours: tuple[socket.socket, Chatter], attached: list[int], reward: object, limits: Limits) -> int:
    pool, chatter = ours
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        for descriptor in attached:
            os.close(descriptor)
        return pid
    status = 1
    try:
        pool.close()
        chatter.speak()
        _confine(limits, nursery)
        _answer(socket.socket(fileno=attached[0]), reward, limits)
        status = 0
    finally:
        os._exit(status)  # never back into the parent's loop, nor through its clean-up


def _end(pid: int) -> None:
    """Kills a fork and its process group; its number is free for others only afterwards."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _confine(limits: Limits, parent: int) -> None:
    os.setpgid(0, 0)
    adopt()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent went before the promise to follow it was made
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(pool: socket.socket, reward: object, limits: Limits) -> None:
    own = os.getpid()
    with pool, pool.makefile("rb") as questions:
        for count, line in enumerate(questions, start=1):
            used = resource.getrusage(resource.RUSAGE_SELF)
            soft = math.ceil(used.ru_utime + used.ru_stime) + limits.cpu_s
            resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
            answer, is_spent = graded(reward, line)
            if os.getpid() != own:
                os._exit(0)  # the reward forked and came back twice
            is_last = is_spent or count >= RETIRES_AFTER or ended() > MOST_ENDED
            pool.sendall(_line({**answer, "last": is_last}))
            if is_last:
                return


def graded(reward: object, line: bytes) -> tuple[dict[str, object], bool]:
    """The score, and whether this process should be trusted with another question."""
    try:
        score = reward(Question.of_line(line)) if callable(reward) else None
        if not _is_score(score):
            raise TypeError(f"a reward returns a Score with a finite number, got {score!r:.200}")
        extracted = None if score.extracted is None else score.extracted[:LONGEST_EXTRACT]
        return {"reward": float(score.reward), "correct": int(score.correct), "extracted": _clean(extracted)}, False
    except Exception as error:  # noqa: BLE001  # an answer that breaks the reward is a verdict, not an end
        is_spent = isinstance(error, MemoryError | RecursionError) or getattr(error, "errno", None) in _NO_FILES
        return {"error": _clean(f"{type(error).__name__}: {error}"[:500])}, is_spent


def _is_score(score: object) -> TypeGuard[Score]:
    return isinstance(score, Score) and math.isfinite(score.reward) and score.correct in (0, 1)


def _clean(text: str | None) -> str | None:
    """Text that UTF-8 can hold: a lone surrogate of a user's own becomes a question mark."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _line(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"


if __name__ == "__main__":
    main(int(sys.argv[1]))
