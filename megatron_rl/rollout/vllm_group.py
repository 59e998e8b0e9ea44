"""The driver's side of one vLLM group: its process, the line to it, and whether it lives."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

MODULE: Final = "megatron_rl.rollout.vllm_process"
SAY_S: Final = 30.0
"""How long a group may take to listen."""
QUOTED_LINES: Final = 12
"""Last lines of a group's log that its death is explained by."""
QUOTED_CHARACTERS: Final = 200
"""Of each: vLLM's own last words list everything it was asked, on one line."""


class GroupLost(RuntimeError):
    """A group died, said nothing for too long, or could not do what it was asked."""


@dataclass(frozen=True, kw_only=True)
class CoreOrder:
    """What a group is started as; it crosses to the group's process as JSON."""

    folder: str
    """Hugging Face folder of config and tokenizer; its weights are not read."""
    dtype: str
    context: int
    tp: int
    rows: int
    cache_bytes: int
    memory_share: float
    may_sleep: bool
    needs_text: bool
    """Whether stop texts are looked for, for which vLLM needs the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Post:
    """Where a group stands: Post(name="group 0", log=Path("runs/a/logs/group_0.log"), threads=1, gpus=())."""

    name: str
    log: Path
    threads: int
    gpus: tuple[int, ...]
    module: str = MODULE
    """What runs there; tests know others that speak the same lines."""

    def environment(self) -> dict[str, str]:
        """The driver's own, less what would let vLLM speak with the world or share the driver's devices."""
        quiet = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the group's own process, and dies with it
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one more than the context, for a token that nobody reads
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        if self.gpus:
            return os.environ | quiet | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))}
        on_cpu = {
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own binding refuses two workers on one memory node
            "TORCHDYNAMO_DISABLE": "1",  # compiling a few helpers costs the first request longer than they ever save
        }
        return os.environ | quiet | on_cpu


@dataclass(kw_only=True, eq=False)
class Group:
    """A running group. Its number names nothing else until `kill` has waited for it."""

    post: Post
    process: subprocess.Popen[bytes]
    wire: socket.socket
    heard: bytearray = field(default_factory=bytearray)
    is_ready: bool = False
    last_heard: float = 0.0

    @staticmethod
    def start(post: Post, order: CoreOrder) -> Group:
        """Starts the process and hands it its order; it says 'ready' when it can be spoken to."""
        ours, theirs = socket.socketpair()
        post.log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, post.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", post.module, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the driver's to handle, and one kill ends all its workers
                env=post.environment(),
            )
        group = Group(post=post, process=process, wire=ours, last_heard=time.monotonic())
        ours.settimeout(SAY_S)
        group.say(asdict(order))
        return group

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, command: dict[str, Any]) -> None:
        """Sends a command; a group that is gone is told by its silence."""
        self.last_heard = time.monotonic()
        with suppress(OSError):
            self.wire.sendall(json.dumps(command).encode() + b"\n")

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines that came, at least one read of the socket; GroupLost where the process is gone."""
        try:
            data = self.wire.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            raise GroupLost(f"{self.post.name} died{self._last_words()}")
        self.last_heard = time.monotonic()
        self.heard += data
        while b"\n" in self.heard:
            line, _, self.heard = self.heard.partition(b"\n")
            yield json.loads(line)

    def wait(self, said: str, timeout_s: float) -> dict[str, Any]:
        """The line that answers a command; GroupLost where another or none comes in time."""
        ends = time.monotonic() + timeout_s
        while (left := ends - time.monotonic()) > 0:
            if not select.select([self.wire], [], [], left)[0]:
                continue
            for line in self.read():
                if line["said"] == said:
                    return line
                if line["said"] == "failed":
                    raise GroupLost(f"{self.post.name} could not {line['what']}: {line['why']}")
        raise GroupLost(f"{self.post.name} did not say '{said}' within {timeout_s:g} s{self._last_words()}")

    def kill(self) -> None:
        """Ends the process and its workers, and waits for it; what they shared memory by goes with them."""
        shared = shared_memory(self.process.pid)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.wire.close()
        for path in shared:
            path.unlink(missing_ok=True)

    def close(self, timeout_s: float = 10.0) -> None:
        """Lets it end by itself, so that it removes what it made; then kills what is left."""
        with suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.kill()

    def _last_words(self) -> str:
        try:
            lines = self.post.log.read_text(errors="replace").splitlines()
        except OSError:
            return "."
        said = [line[:QUOTED_CHARACTERS] for line in lines if line.strip()][-QUOTED_LINES:]
        return (
            f"; its log {self.post.log} ends with:\n" + "\n".join(said)
            if said
            else f"; its log {self.post.log} is empty."
        )


def shared_memory(group: int) -> set[Path]:
    """Files in memory that vLLM's workers of this process group speak over; a killed worker would leave them there."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group:
                paths = {Path(mapped.path) for mapped in process.memory_maps()}
                found |= {path for path in paths if path.match("/dev/shm/vllm_dist_*") or path.match("/dev/shm/psm_*")}
    return found
