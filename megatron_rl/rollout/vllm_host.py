"""The process of a vLLM group: what it is started as, and the machine that starts it and ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import psutil

from megatron_rl.interpreter import command, search_path
from megatron_rl.logs import heading, with_room

MODULE: Final = "megatron_rl.rollout.vllm_process"

SHARED: Final = ("/dev/shm/vllm_dist_*", "/dev/shm/psm_*", "/dev/shm/megatron_rl-*.ring")
"""Files in memory: what workers speak over, and what weights would have come by."""
Launch = Callable[[socket.socket], "subprocess.Popen[bytes]"]
"""Starts a process that speaks over this socket."""
End = Callable[["subprocess.Popen[bytes]"], None]
"""Ends it with everything it made, and waits for it."""


@dataclass(frozen=True, kw_only=True)
class Post:
    """What a group is: Post(name="vLLM group 0", log=Path("runs/a/logs/vllm_0.log"), threads=1, gpus=())."""

    name: str
    log: Path
    threads: int
    gpus: tuple[int, ...]
    module: str = MODULE
    """What runs there; tests know others that speak the same lines."""

    def environment(self) -> dict[str, str]:
        """The machine's own, less what would let vLLM speak with the world or share the driver's devices."""
        quiet = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the group's own process, and dies with it
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one more than the context, for a token that nobody reads
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.gpus:
            return os.environ | quiet | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))}
        on_cpu = {
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own binding refuses two workers on one memory node
            "TORCHDYNAMO_DISABLE": "1",  # compiling a few helpers costs the first request longer than they ever save
        }
        return os.environ | quiet | on_cpu

    def launch(self) -> Launch:
        """Starts the group on whichever machine this is called; what it imports lies where it does for this process."""
        return partial(_launch, self, search_path())


class Running(Protocol):
    """A group's process, as `subprocess.Popen` shows it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; subprocess.TimeoutExpired where it has none by then."""


class Host(Protocol):
    """A machine on which groups stand."""

    @property
    def machine(self) -> str:
        """Its name; empty is the driver's own."""

    def start(self, name: str, launch: Launch) -> tuple[Running, socket.socket]:
        """The process, known to people by this name, and the driver's end of the line to it."""

    def end(self, process: Running, end: End) -> None:
        """Returns when nothing is left of it."""


@dataclass(frozen=True)
class Here:
    """The driver's own machine, as a `Host`."""

    machine: str = ""

    def start(self, name: str, launch: Launch) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            return launch(theirs), ours

    def end(self, process: Running, end: End) -> None:
        assert isinstance(process, subprocess.Popen), "it was started here"
        end(process)


class Seat(NamedTuple):
    """Where a group stands."""

    host: Host = Here()
    gpus: tuple[int, ...] = ()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and its workers, and waits for it; what they shared memory by goes with them."""
    shared = shared_memory(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in shared:
        path.unlink(missing_ok=True)


def shared_memory(group: int) -> set[Path]:
    """Files in memory that the processes of this group have mapped; a killed one would leave them there."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group:
                paths = {Path(mapped.path) for mapped in process.memory_maps()}
                found |= {path for path in paths if any(map(path.match, SHARED))}
    return found


def _launch(post: Post, path: Mapping[str, str], theirs: socket.socket) -> subprocess.Popen[bytes]:
    with with_room(post.log).open("ab") as log:
        log.write(f"{heading(post.log)}\n".encode())
        log.flush()
        return subprocess.Popen(
            command(post.module, str(theirs.fileno()), str(post.log)),
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the driver's to handle, and one kill ends all its workers
            env={**post.environment(), **path},
        )
