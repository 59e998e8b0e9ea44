"""A rollout wave, event by event: requests enter an engine as others leave it, until the longest has been written.

Between two events nothing changes but the lengths, so the time of all steps up to the next one is a sum of terms
that grow evenly.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from heapq import heappop, heappush
from typing import Final, NamedTuple

from megatron_rl.actor.architecture import Architecture
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Engines, Job, Setup
from megatron_rl.planner.memory import cache_bytes, elements
from megatron_rl.planner.work import forward, matrix_elements

SIMULATED: Final = 4
"""Replicas that are gone through; all have about the same requests, and one of them the longest."""


class Wave(NamedTuple):
    """Wave(seconds=40.0, tokens=1_000_000, busy=0.6): `busy` is the mean share of replicas that are still writing."""

    seconds: float
    tokens: int
    busy: float


class Request(NamedTuple):
    """Tokens to read, the drafted part of the response among them, and tokens to write."""

    reads: int
    writes: int


class Pace:
    """What a step of one engine takes, with so many rows and so many cached tokens."""

    def __init__(self, architecture: Architecture, cluster: Cluster, engines: Engines) -> None:
        self.architecture, self.cluster, self.engines = architecture, cluster, engines
        shape, reached, gpu, tp = architecture.shape, cluster.reached, cluster.gpu, engines.tp
        self.bandwidth = gpu.memory_bandwidth * reached.reading
        self.operations = gpu.bf16 * reached.prefill * tp
        self.token_bytes = cache_bytes(shape, engines)
        sums = 2 * shape.layers * reached.reduction_s if tp > 1 else 0.0
        self.fixed_s = reached.step_s + sums
        sparse = sum(shape.is_sparse(layer) for layer in range(shape.layers))
        self.experts_bytes = 2 * 3 * sparse * shape.experts * shape.hidden * shape.expert_ffn / tp
        self.dense_bytes = 2 * elements(shape) / tp - self.experts_bytes
        self.matrices = matrix_elements(architecture)
        self.token_operations, self.pair_operations = forward(architecture, 1, 0), forward(architecture, 0, 1)

    def step(self, rows: int, cached: float) -> float:
        """Seconds in which every row gets one more token."""
        moved = self.dense_bytes + self.experts_bytes * self._touched(rows) + cached * self.token_bytes
        computed = 2.0 * self.matrices * rows / self.operations
        return max(moved / self.bandwidth, computed) + self.fixed_s + rows * self.cluster.reached.row_s

    def read(self, tokens: int) -> float:
        """Seconds to read a prompt."""
        return (self.token_operations * tokens + self.pair_operations * tokens**2) / self.operations

    def _touched(self, rows: int) -> float:
        """The share of experts that some row chooses."""
        routing, shape = self.architecture.routing, self.architecture.shape
        if routing is None or not shape.experts:
            return 0.0
        return float(1 - (1 - routing.chosen / shape.experts) ** rows)


def wave(setup: Setup, engines: Engines, cached_tokens: int) -> Wave:
    """All rollouts of a step, shared out to the engines in turn; each holds at most `cached_tokens`."""
    shares, tokens = _heaviest(setup.job, engines.replicas)
    pace = Pace(setup.architecture, setup.cluster, engines)
    ends = [written_by(pace, share, engines.rows, cached_tokens) for share in shares]
    return Wave(max(ends), tokens, sum(ends) / len(ends) / max(ends))


@lru_cache(maxsize=32)  # a search asks for the same few of one job again and again
def _heaviest(job: Job, replicas: int) -> tuple[list[list[Request]], int]:
    """What the replicas that end last have to write, and the tokens that all of them write."""
    shares = [share for replica in range(replicas) if (share := _requests(job)[replica::replicas])]
    written = [sum(one.writes for one in share) for share in shares]
    # One replica has the longest response, one the most to write; the others are like those.
    longest = max(range(len(shares)), key=lambda place: max(one.writes for one in shares[place]))
    busiest = sorted(range(len(shares)), key=lambda place: -written[place])[: SIMULATED - 1]
    return [shares[place] for place in (longest, *busiest)], sum(written)


@lru_cache(maxsize=4)
def _requests(job: Job) -> list[Request]:
    drafted = [(length, round(length * job.drafted)) for length in job.lengths.draw(job.written)]
    return [Request(job.prompt_tokens + kept, max(1, length - kept)) for length, kept in drafted]


def written_by(pace: Pace, requests: list[Request], rows: int, cached_tokens: int) -> float:
    """Seconds until one engine has written these responses, in their order, as many at once as there is room for."""
    waiting = deque(requests)
    # A request in hand is known by the step at which it is done, so nothing has to be counted down.
    inside: list[tuple[int, int]] = []
    now, step, cached, promised = 0.0, 0, 0.0, 0
    while waiting or inside:
        while waiting and len(inside) < rows and (not inside or promised + sum(waiting[0]) <= cached_tokens):
            entering = waiting.popleft()
            heappush(inside, (step + entering.writes, sum(entering)))
            now += pace.read(entering.reads)
            cached += entering.reads
            promised += sum(entering)
        until, count = inside[0][0], len(inside)
        # The mean length of the stretch: the cost of a step grows evenly with it.
        steps = until - step
        now += steps * pace.step(count, cached + count * steps / 2)
        cached += count * steps
        step = until
        while inside and inside[0][0] == step:
            _, held = heappop(inside)
            cached -= held
            promised -= held
    return now
