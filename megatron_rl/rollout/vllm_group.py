"""The driver's side of one vLLM group: its process, the line to it, and whether it lives."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from megatron_rl.logs import newest
from megatron_rl.rollout.vllm_host import Here, Host, Post, Running, end

HERE: Final = Here()
ALIVE: Final = "alive"
"""What a group at work says beside its work."""
LISTEN_S: Final = 0.2
"""How long a silence is listened to before the clocks are looked at."""
SAY_S: Final = 30.0
"""How long a group may take to listen."""
MISSED: Final = 2
"""Heartbeats without a sign of life after which a group at work is lost."""
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
    heartbeat_s: float = 10.0
    """How often a group at work must show that its processes run; it does so more often."""


@dataclass(kw_only=True, eq=False)
class Group:
    """A running group. Its number names nothing else until `kill` has waited for it."""

    post: Post
    host: Host
    process: Running
    wire: socket.socket
    heartbeat_s: float
    heard: bytearray = field(default_factory=bytearray)
    unheeded: deque[dict[str, Any]] = field(default_factory=deque)
    """What it said of its work while an answer was waited for."""
    is_ready: bool = False
    is_gone: bool = False
    """Whether it died, or said nothing for too long: it is of no more use."""
    last_heard: float = 0.0
    """When it last said something of its work."""
    last_beat: float = 0.0
    """When it last said anything."""
    last_looked: float = 0.0
    """When it was last listened for."""

    @staticmethod
    def start(post: Post, order: CoreOrder, host: Host = HERE) -> Group:
        """Starts the process and hands it its order; it says 'ready' when it can be spoken to."""
        process, ours = host.start(post.name, post.launch())
        ours.settimeout(SAY_S)
        group = Group(post=post, host=host, process=process, wire=ours, heartbeat_s=order.heartbeat_s)
        group.say(asdict(order))
        return group

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, command: dict[str, Any]) -> None:
        """Sends a command; a group that is gone is told by its silence."""
        self.last_heard = self.last_beat = time.monotonic()
        with suppress(OSError):
            self.wire.sendall(json.dumps(command).encode() + b"\n")

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines that came, at least one read of the socket; GroupLost where the process is gone."""
        try:
            data = self.wire.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.is_gone = True
            raise GroupLost(f"{self.post.name} died{self._last_words()}")
        self.last_beat = time.monotonic()
        self.heard += data
        while b"\n" in self.heard:
            line, _, self.heard = self.heard.partition(b"\n")
            said: dict[str, Any] = json.loads(line)
            if said["said"] != ALIVE:
                self.last_heard = self.last_beat
                yield said

    def wait(self, said: str, timeout_s: float) -> dict[str, Any]:
        """The line that answers a command; GroupLost where another or none comes in time."""
        ends = time.monotonic() + timeout_s
        while (line := self.answer(said, LISTEN_S)) is None:
            if time.monotonic() > ends:
                self.is_gone = True
                raise GroupLost(f"{self.post.name} did not say '{said}' within {timeout_s:g} s{self._last_words()}")
        return line

    def answer(self, said: str, listen_s: float) -> dict[str, Any] | None:
        """The line that answers a command, None where none came so far; GroupLost where none will."""
        if not select.select([self.wire], [], [], listen_s)[0]:
            self.check_alive()
            return None
        answer: dict[str, Any] | None = None
        for line in self.read():
            if line["said"] == "failed":
                raise GroupLost(f"{self.post.name} could not {line['what']}: {line['why']}")
            if line["said"] == said:
                answer = line
            else:
                self.unheeded.append(line)
        return answer

    def check_alive(self) -> None:
        """GroupLost where a group at work was not heard of for two heartbeats; one that starts may be deaf for long."""
        now = time.monotonic()
        if now - self.last_looked > self.heartbeat_s:  # whoever did not listen cannot have heard
            self.last_beat = now
        self.last_looked, silence = now, now - self.last_beat
        is_deaf = self.is_ready and silence > MISSED * self.heartbeat_s
        if is_deaf and not select.select([self.wire], [], [], 0)[0]:  # what it said may lie unread
            self.is_gone = True
            raise GroupLost(
                f"{self.post.name} missed two heartbeats of {self.heartbeat_s:g} s and was ended{self._last_words()}"
            )

    def kill(self) -> None:
        """Ends the process and its workers, and waits for it; what they shared memory by goes with them."""
        self.host.end(self.process, end)
        self.wire.close()

    def part(self) -> None:
        """Tells it that nobody speaks to it any more."""
        with suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)

    def close(self, timeout_s: float = 10.0) -> None:
        """Lets it end by itself, so that it removes what it made; then kills what is left."""
        self.part()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.kill()

    def _last_words(self) -> str:
        try:
            lines = newest(self.post.log)
        except OSError:
            return "."
        said = [line[:QUOTED_CHARACTERS] for line in lines if line.strip()][-QUOTED_LINES:]
        return (
            f"; its log {self.post.log} ends with:\n" + "\n".join(said)
            if said
            else f"; its log {self.post.log} is empty."
        )
