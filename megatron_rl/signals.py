"""Signals that ask a run to stop, heard whatever becomes of their handlers."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STOPPING: Final = (signal.SIGTERM, signal.SIGUSR1)
Stop = Callable[[str], None]


class Ear:
    """`stop` is called with the reason when a signal comes, and may be exchanged; `heard` knows of every one.

    What a handler raises is lost where Python was in a callback, and Ray has a handler of its own while it starts. The
    interpreter writes the number of a signal to `wire` before either has a say.
    """

    def __init__(self, stop: Stop, wire: socket.socket) -> None:
        self.stop, self._wire, self._reason = stop, wire, ""

    def heard(self) -> str:
        """Why the run should stop, by the first signal that said so; empty while none did."""
        try:
            numbers = [*self._wire.recv(4096)]
        except BlockingIOError:
            numbers = []
        asked = [number for number in numbers if number in STOPPING]
        self._reason = self._reason or (_reason(asked[0]) if asked else "")
        return self._reason

    def told(self, number: int, _: FrameType | None) -> None:
        """The handler."""
        self.stop(_reason(number))


def _reason(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"


@contextmanager
def listening(stop: Stop) -> Iterator[Ear]:
    """Within, signals that ask for a stop call `stop`."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        ear = Ear(stop, ours)
        wire_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, ear.told) for number in STOPPING}
        try:
            yield ear
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wire_before)
