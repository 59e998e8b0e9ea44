"""Who speaks to the groups: one at a time, and whoever brings weights goes before the next pass of a wave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LISTEN_S: Final = 0.2
"""How long somebody waits before looking whether waiting is still wanted."""


class Floor:
    """Held by whoever asks the groups for something, and claimed by whoever publishes, from another thread.

    with floor.held(waiting):            # `waiting` is called now and then, and ends the wait by what it raises
        floor.give_way(waiting)          # between two passes: weights may come here
    floor.claim(60.0)                    # from here on nobody else speaks
    floor.release()

    A wave that lost every group with its weights says by `is_awaited` that it goes on when somebody publishes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_held = False
        self.is_claimed = False
        """Whether somebody publishes, or waits for a wave to make room for it."""
        self.is_awaited = False
        """Whether a wave can go on only with weights that somebody publishes."""

    @contextmanager
    def held(self, waiting: Callable[[], None]) -> Iterator[None]:
        self._take(waiting)
        try:
            yield
        finally:
            self._give()

    def give_way(self, waiting: Callable[[], None]) -> bool:
        """Lets whoever claims it speak; False where nobody does."""
        with self._changed:
            if not self.is_claimed:
                return False
        self._give()
        self._take(waiting)
        return True

    def claim(self, timeout_s: float) -> None:
        """Returns when nobody else speaks, nor will before `release`; claiming twice is claiming once."""
        with self._changed:
            self.is_claimed = True
            if not self._changed.wait_for(lambda: not self._is_held, timeout_s):
                self.is_claimed = False
                raise TimeoutError(f"who asks the groups for something did not make way for weights in {timeout_s:g} s")

    def release(self) -> None:
        with self._changed:
            self.is_claimed = self.is_awaited = False
            self._changed.notify_all()

    def _take(self, waiting: Callable[[], None]) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: not (self.is_claimed or self._is_held), LISTEN_S):
                    self._is_held = True
                    return
            waiting()

    def _give(self) -> None:
        with self._changed:
            self._is_held = False
            self._changed.notify_all()
