"""Hears of every rank once a heartbeat, whatever the driver is busy with."""

import threading
import time
from collections.abc import Callable, Sequence

import ray
from ray.exceptions import RayError

from megatron_rl.cluster.member import Member
from megatron_rl.cluster.rank import Beat

TICKS = 8
"""Looks for answers a heartbeat."""
LATEST = 2
"""Ticks that one look may come late; what it is later was no time in which a rank could have been heard."""


class Heartbeat:
    """Asks each rank for a beat, once `every_s`; calls `lost` once, with a sentence, when one died or missed two.

    Two are missed when nothing was heard for a heartbeat and the question then asked has no answer for another.
    """

    def __init__(self, members: Sequence[Member], every_s: float, lost: Callable[[str], None]) -> None:
        self.members, self.every_s, self._lost = tuple(members), every_s, lost
        self._ended = threading.Event()
        self._is_strict = False
        self._also: Callable[[], str] = str
        self._now = 0.0
        """Seconds that this thread has lived: while the whole machine stands still, nobody falls silent."""
        self._heard_s = [self._now] * len(self.members)
        self._doing = [""] * len(self.members)
        self._asked: dict[ray.ObjectRef, tuple[int, float]] = {}
        self._thread = threading.Thread(target=self._listen, name="heartbeat", daemon=True)
        self._thread.start()

    def expect_answers(self) -> None:
        """From here on silence counts; while ranks import what they need, they may be deaf for long."""
        self._is_strict = True

    def look_also(self, look: Callable[[], str]) -> None:
        """Each tick asks this too what was lost; it says nothing while all is well, and at once."""
        self._also = look

    def close(self) -> None:
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _listen(self) -> None:
        tick_s = self.every_s / TICKS
        looked = time.monotonic()
        while not self._ended.wait(tick_s):
            passed, looked = time.monotonic() - looked, time.monotonic()
            self._now += min(passed, LATEST * tick_s)
            reason = self._also() or self._hear() or self._silence()
            if reason and not self._ended.is_set():
                return self._lost(reason)
            self._ask()
        return None

    def _ask(self) -> None:
        now, asked = self._now, {rank for rank, _ in self._asked.values()}
        for rank, member in enumerate(self.members):
            if rank not in asked and now - self._heard_s[rank] >= self.every_s:
                self._asked[member.actor.beat.remote()] = rank, now

    def _hear(self) -> str:
        ready = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0] if self._asked else []
        for ref in ready:
            rank, _ = self._asked.pop(ref)
            try:
                beat: Beat = ray.get(ref)
            except RayError:
                return f"{self.members[rank]} died{self._busy(rank)}"
            self._heard_s[rank], self._doing[rank] = self._now, beat.doing
        return ""

    def _silence(self) -> str:
        now = self._now
        if not self._is_strict:
            self._asked = {ref: (rank, now) for ref, (rank, _) in self._asked.items()}
        silent = [rank for rank, asked_s in self._asked.values() if now - asked_s >= self.every_s]
        told = "; ".join(f"{self.members[rank]}{self._busy(rank)}" for rank in sorted(silent))
        return f"{told} missed two heartbeats of {self.every_s:g} s" if silent else ""

    def _busy(self, rank: int) -> str:
        return f", last heard in '{self._doing[rank]}'," if self._doing[rank] else ""
