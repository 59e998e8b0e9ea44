"""A light process that forks others on request, so that a process which must be killed is replaced in milliseconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import psutil

from megatron_rl.interpreter import command, search_path

START_TIMEOUT_S: Final = 60.0


@dataclass(kw_only=True, eq=False)
class Fork:
    """One forked process and the socket to it, over which lines go both ways."""

    pid: int
    wire: socket.socket
    heard: bytearray = field(default_factory=bytearray)

    def is_heard(self) -> bool:
        """Reads what came; True at the end of a line, and at the end of the process."""
        try:
            data = self.wire.recv(1 << 16)
        except OSError:
            data = b""
        self.heard += data
        return not data or self.heard.endswith(b"\n")

    def kill(self) -> None:
        """Kills it and its process group; what else it started goes with `end`, until which its number is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def line(self) -> bytes | None:
        """The line that was heard; None where there is none, because the process ended or says nothing."""
        line = bytes(self.heard) if self.heard.endswith(b"\n") else None
        self.heard.clear()
        return line


class Nursery:
    """Starts `python -m module FD` and speaks with it: a line of JSON each way, sockets of new forks attached.

    The first line is `order`; the module says there what it answers to `start` and `end`. When this object or its
    process goes, the socket ends, and the module ends every fork.
    """

    def __init__(self, module: str, order: Mapping[str, object]) -> None:
        self.module = module
        self._wire, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command(module, str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__,  # what user code prints there is no output of this program
                start_new_session=True,  # Ctrl-C is for the run to handle, not for its graders to die of
                env=os.environ | search_path(),
            )
        self._wire.settimeout(START_TIMEOUT_S)
        self._send(order)

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self) -> dict[str, object]:
        """The next line it says."""
        said = b""
        try:
            while not said.endswith(b"\n"):
                if not (data := self._wire.recv(4096)):
                    raise ConnectionError("it hung up")
                said += data
        except OSError as error:
            raise RuntimeError(
                f"{self.module} does not answer ({error}); what it said stands on stderr above."
            ) from error
        return dict(json.loads(said))

    def start(self) -> Fork:
        ours, theirs = socket.socketpair()
        with theirs:
            self._send({"command": "start"}, theirs)
            pid = self.answer()["pid"]
        return Fork(pid=int(str(pid)), wire=ours)

    def end(self, fork: Fork) -> None:
        """Kills the fork, if it still is, and what it started, and lets its number go."""
        fork.wire.close()
        self._send({"command": "end", "pid": fork.pid})
        self.answer()

    def close(self) -> None:
        """Ends it and every fork, and what these started."""
        self._wire.close()
        try:
            self._process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for each in (*psutil.Process(self.pid).children(recursive=True), self._process):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            self._process.wait()

    def _send(self, message: Mapping[str, object], attached: socket.socket | None = None) -> None:
        data = json.dumps(message).encode() + b"\n"
        with suppress(OSError):  # a process that is gone is told by its missing answer
            if attached is None:
                self._wire.sendall(data)
            else:
                socket.send_fds(self._wire, [data], [attached.fileno()])
