"""The order of screening and continuing (SPEED-RL, section c) as a state and four moves, blind to tokens and rewards.

Prompts are occurrences: positions in the stream of draws, so the same prompt drawn twice is two of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Who waits for what; both lists are first in, first out.

    Queue(position=6, pending=(3, 4), ready=(0,)): six prompts screened, 3 and 4 await continuation, 0 is complete.
    """

    position: int = 0
    pending: tuple[int, ...] = ()
    ready: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wave:
    """One trip to the engine: fresh prompts to screen, accepted ones to continue."""

    screen: tuple[int, ...]
    resume: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        return not self.screen and not self.resume

    def rollouts(self, screen: int, more: int) -> int:
        return screen * len(self.screen) + more * len(self.resume)


def can_train(queue: Queue, prompts: int) -> bool:
    return len(queue.ready) >= prompts


def next_wave(queue: Queue, fresh: int, stream_end: int) -> tuple[Queue, Wave]:
    """The next `fresh` prompts of the stream, fewer at its end, together with all that are pending."""
    stop = min(queue.position + fresh, stream_end)
    wave = Wave(screen=tuple(range(queue.position, stop)), resume=queue.pending)
    return replace(queue, position=stop, pending=()), wave


def settle(queue: Queue, wave: Wave, accepted: Collection[int]) -> Queue:
    """The queue after the wave was scored: continued prompts are ready, screened ones pending or rejected."""
    return replace(
        queue,
        ready=queue.ready + wave.resume,
        pending=queue.pending + tuple(prompt for prompt in wave.screen if prompt in accepted),
        rejected=queue.rejected + tuple(prompt for prompt in wave.screen if prompt not in accepted),
    )


def next_batch(queue: Queue, prompts: int) -> tuple[Queue, tuple[int, ...]]:
    """The first complete prompts, in the order of acceptance."""
    return replace(queue, ready=queue.ready[prompts:]), queue.ready[:prompts]
