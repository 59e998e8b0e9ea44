"""What became of each request of a wave: nothing that a group says is believed before it is checked."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_rl.rollout.writing import Request

Piece = tuple[int, int, list[int], list[float], str, int]
"""Request, place of its first token in what this group wrote, tokens, log-probabilities, how it ended, version."""

FINISHES = ("stop", "length", "abort")


@dataclass(kw_only=True)
class Ledger:
    """Requests by number. Each is waiting, out with one group, or over: requested = scored + failed."""

    requests: Sequence[Request]
    retries: int
    """How many groups a request may lose before it fails."""
    versions: range
    """Versions that may write: that of the beginning, and those that have come since."""
    waiting: deque[int] = field(default_factory=deque)
    out: dict[int, int] = field(default_factory=dict)
    """The group of each request that is being written."""
    begun: dict[int, int] = field(default_factory=dict)
    """Tokens each had when its group took it on."""
    lost: dict[int, int] = field(default_factory=dict)
    """Groups each has lost."""

    def __post_init__(self) -> None:
        self.waiting.extend(id for id, request in enumerate(self.requests) if not request.finish)

    @property
    def is_open(self) -> bool:
        return bool(self.waiting or self.out)

    @property
    def done(self) -> int:
        return sum(1 for request in self.requests if request.finish)

    @property
    def tokens(self) -> int:
        return sum(request.written for request in self.requests)

    def take(self, group: int, most: int) -> list[int]:
        """Up to so many waiting requests, now out with this group."""
        taken = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
        self.out |= dict.fromkeys(taken, group)
        self.begun |= {id: len(self.requests[id].tokens) for id in taken}
        return taken

    def held(self, group: int) -> list[int]:
        """The requests that are out with this group."""
        return [id for id, holder in self.out.items() if holder == group]

    def note(self, group: int, piece: Piece) -> bool:
        """Writes down what a group says; False where it speaks of a request that it has not, which changes nothing."""
        id, at, tokens, logprobs, finish, version = piece
        if self.out.get(id) != group:
            return False
        request = self.requests[id]
        if problem := self._problem(request, at + self.begun[id], piece):
            self._end(id, "abort", f"request {id} (seed {request.seed}): the engine {problem}")
            return True
        request.tokens.extend(tokens)
        request.logprobs.extend(logprobs)
        request.versions.extend([version] * len(tokens))
        if finish:
            self._end(id, finish)
        return True

    def refuse(self, group: int, id: int, why: str) -> None:
        """The group will not write this request, for a reason that any group has."""
        if self.out.get(id) == group:
            self._end(id, "abort", f"request {id} (seed {self.requests[id].seed}) was refused: {why}")

    def lose(self, group: int, why: str) -> None:
        """The group is gone: what it wrote is kept and goes on elsewhere, if not too many were lost already."""
        for id in reversed(self.held(group)):
            del self.out[id]
            self.lost[id] = self.lost.get(id, 0) + 1
            if self.lost[id] > self.retries:
                seed = self.requests[id].seed
                self._end(id, "abort", f"request {id} (seed {seed}) was lost with {self.lost[id]} groups: {why}")
            else:
                self.waiting.appendleft(id)

    def fail(self, why: str) -> None:
        """Nobody is left to write what is not over."""
        for id in (*self.waiting, *self.out):
            self._end(id, "abort", f"request {id} (seed {self.requests[id].seed}) was not written: {why}")
        self.waiting.clear()

    def cut_short(self) -> None:
        """The wave ends here: every request keeps what was written of it."""
        for id in (*self.waiting, *self.out):
            self._end(id, "abort")
        self.waiting.clear()

    def _end(self, id: int, finish: str, error: str = "") -> None:
        self.out.pop(id, None)
        self.requests[id].finish, self.requests[id].error = finish, error

    def _problem(self, request: Request, place: int, piece: Piece) -> str:
        """What is wrong with a piece, empty where nothing is."""
        _, _, tokens, logprobs, finish, version = piece
        if place != len(request.tokens):
            return f"told the tokens from place {place} where {len(request.tokens)} was next"
        if len(tokens) != len(logprobs):
            return f"told {len(tokens)} tokens with {len(logprobs)} log-probabilities"
        if place + len(tokens) > request.budget:
            return f"wrote {place + len(tokens)} tokens of at most {request.budget}"
        bad = [place + i for i, logprob in enumerate(logprobs) if not math.isfinite(logprob) or logprob > 1e-3]
        if bad:
            return f"gave response token {bad[0]} the log-probability {logprobs[bad[0] - place]}"
        if tokens and version not in self.versions:
            return f"told tokens of version {version}, and writes with {' or '.join(map(str, self.versions))}"
        if finish not in ("", *FINISHES):
            return f"ended with '{finish}', not one of {', '.join(FINISHES)}"
        return ""
