"""What processes print, on its way to stderr: so much of it a minute, however much they print."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from typing import Final

MOST_BYTES: Final = 64 << 10
"""What is passed on each minute."""
WINDOW_S: Final = 60.0
PATIENCE_S: Final = 0.05
"""How long one who reads may take to take more."""
STDOUT, STDERR = 1, 2
_GULP: Final = 64 << 10


class Chatter:
    """A pipe that whoever `speak`s prints into, and of which its maker passes the first part of each minute on.

    It is always emptied: whoever prints too much is not held up, and one that nobody empties holds up only whoever
    prints.
    """

    def __init__(self, out: int = STDERR, most_bytes: int = MOST_BYTES, window_s: float = WINDOW_S) -> None:
        self._out, self._most_bytes, self._window_s = out, most_bytes, window_s
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._ear, False)
        self._since, self._passed = -window_s, 0
        self._is_less, self._is_told = False, False

    def fileno(self) -> int:
        """Readable when there is something to pass on."""
        return self._ear

    def speak(self) -> None:
        """From here on this process, a fork of its maker, prints into the pipe."""
        for number in (STDOUT, STDERR):
            os.dup2(self._mouth, number)
        os.close(self._mouth)
        os.close(self._ear)

    def pass_on(self) -> None:
        """Empties the pipe once; returns also where there is nothing, or where nobody takes it."""
        said = self._heard()
        if (now := time.monotonic()) - self._since >= self._window_s:
            self._since, self._passed = now, 0
            self._is_less, self._is_told = self._is_less and not self._is_told, False
        kept = said[: self._most_bytes - self._passed]
        self._passed += len(kept)
        self._is_less |= not self._say(kept) or len(kept) < len(said)
        if self._is_less and not self._is_told:
            most = f"beyond {self._most_bytes >> 10} KiB in {self._window_s:g} s, or faster than it is read"
            self._is_told = self._say(f"\n--- left out what graders print {most}\n".encode())

    def _heard(self) -> bytes:
        with suppress(BlockingIOError):
            return os.read(self._ear, _GULP)
        return b""

    def _say(self, data: bytes) -> bool:
        """Whether all of it was taken, without much waiting: a stopped terminal must not stop the one who grades."""
        with suppress(OSError):  # nor is a disk that is full a reason to end
            for start in range(0, len(data), select.PIPE_BUF):
                if not select.select([], [self._out], [], PATIENCE_S)[1]:
                    return False
                os.write(self._out, data[start : start + select.PIPE_BUF])
            return True
        return False
