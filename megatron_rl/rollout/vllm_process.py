"""The process of one vLLM group: `python -m megatron_rl.rollout.vllm_process FD LOG`.

A line of JSON each way over the socket FD; what is printed stands in LOG. The first line is the group's order; then
commands, answered in order. What is being written is told every so often without being asked, so that the driver has it
should this process die.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from megatron_rl.logs import shorten
from megatron_rl.rollout.vllm_core import Core, Wrote
from megatron_rl.rollout.vllm_group import ALIVE, CoreOrder
from megatron_rl.rollout.vllm_host import shared_memory

BEATS: Final = 4
"""Signs of life a heartbeat."""
LEAVE_S: Final = 5.0
"""How long a group may take to leave in order once its driver is gone."""
TELL_S: Final = 0.2
"""How often the driver is told what was written, or that this process is alive."""


class Line:
    """Lines of JSON over a socket."""

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        self.heard = bytearray()
        self.is_awaited = False
        """Whether the driver waits for something to be said."""
        self._saying = threading.Lock()

    def is_waiting(self) -> bool:
        """Whether something came that was not read."""
        return b"\n" in self.heard or bool(select.select([self.wire], [], [], 0)[0])

    def read(self) -> dict[str, Any] | None:
        """The next line; None where the driver is gone."""
        while b"\n" not in self.heard:
            if not (data := self.wire.recv(1 << 20)):
                return None
            self.heard += data
        line, _, self.heard = self.heard.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def say(self, said: str, **facts: object) -> None:
        data = json.dumps({"said": said, **facts}).encode() + b"\n"
        with self._saying:
            self.wire.sendall(data)

    def beat(self, every_s: float) -> None:
        """Says, as long as it is listened to, that every process of the group runs; a worker that was stopped does not.

        What nobody reads would fill the line, so nothing is said while the driver waits for nothing.
        """
        own = psutil.Process()
        with suppress(OSError):  # the driver is gone
            while True:
                time.sleep(every_s)
                if self.is_awaited and not any(map(_is_stopped, own.children(recursive=True))):
                    self.say(ALIVE)
        time.sleep(LEAVE_S)  # it would wait for the driver's weights much longer
        _end_all()


class Post:
    """What the process does: commands first, and a step of writing between them."""

    def __init__(self, core: Core, line: Line, log: Path) -> None:
        self.core, self.line, self.log = core, line, log
        self.untold: list[Wrote] = []
        self.told = time.monotonic()

    def serve(self) -> None:
        """Until the driver is gone."""
        while True:
            if not self.core.is_busy or self.line.is_waiting():
                command = self.line.read()
                if command is None:
                    return
                self.line.is_awaited = True
                self._obey(command)
                shorten(self.log)
            if self.core.is_busy:
                self._tell(self.core.step())
            self.line.is_awaited = self.core.is_busy

    def _obey(self, command: Mapping[str, Any]) -> None:
        wanted = {name: value for name, value in command.items() if name != "do"}
        try:
            self._do(command["do"], wanted)
        except Exception as error:  # noqa: BLE001  # whatever it is, the driver is told
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            self.line.say("failed", what=command["do"], why=f"{type(error).__name__}: {error}")

    def _do(self, what: str, wanted: Mapping[str, Any]) -> None:
        match what:
            case "write":
                if refused := self.core.write(**wanted):
                    self.line.say("refused", rows=refused)
            case "abort":
                self._tell(self.core.abort(), at_once=True)
                self.line.say("aborted")
            case "score":
                self.line.say("scored", rows=self.core.score(**wanted))
            case "open":
                self.core.open(**wanted)
                self.line.say("opened")
            case "receive":
                if self.untold:  # first, so that the driver has it should the version not come
                    self._tell((), at_once=True)
                self.line.say("received", reports=self.core.receive(**wanted))
            case "sleep" | "wake":
                (self.core.sleep if what == "sleep" else self.core.wake)(**wanted)
                self.line.say("obeyed")
            case _:
                raise ValueError(f"a group has no command '{what}'")

    def _tell(self, wrote: Iterable[Wrote], at_once: bool = False) -> None:
        self.untold.extend(wrote)
        if at_once or time.monotonic() - self.told > TELL_S or not self.core.is_busy:
            self.line.say("wrote", pieces=self.untold)
            self.untold, self.told = [], time.monotonic()


def _end_all() -> None:
    """The group's workers are in this session and have nobody left to answer to, nor time to tidy up."""
    for path in shared_memory(os.getpgid(0)):
        path.unlink(missing_ok=True)
    os.killpg(0, signal.SIGKILL)


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def main(descriptor: int, log: Path) -> None:
    with socket.socket(fileno=descriptor) as wire:
        line = Line(wire)
        order = line.read()
        if order is None:
            return
        core = Core(CoreOrder(**order))
        line.say("ready")
        threading.Thread(target=line.beat, args=(order["heartbeat_s"] / BEATS,), name="beat", daemon=True).start()
        Post(core, line, log).serve()
        core.close()
    _end_all()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
