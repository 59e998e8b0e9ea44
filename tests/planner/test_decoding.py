from dataclasses import replace

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.planner.decoding import Pace, Request, wave, written_by
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Engines, Job, Setup
from megatron_rl.planner.lengths import Lengths
from tests.planner.configs import QWEN3_8B, QWEN3_30B_A3B

SETUP = Setup(
    architecture=describe(QWEN3_8B),
    cluster=Cluster(nodes=1),
    job=Job(prompts=32, samples=8, lengths=Lengths(mean=500, most=2048)),
)
PACE = Pace(SETUP.architecture, SETUP.cluster, Engines(1, 1))


def token_by_token(requests: list[Request], rows: int) -> float:
    """What `written_by` should say, one step at a time."""
    waiting, inside, now = list(requests), [], 0.0
    while waiting or inside:
        while waiting and len(inside) < rows:
            entering = waiting.pop(0)
            now += PACE.read(entering.reads)
            inside.append([entering.reads, entering.writes])
        now += PACE.step(len(inside), sum(cached + 0.5 for cached, _ in inside))
        inside = [[cached + 1, left - 1] for cached, left in inside if left > 1]
    return now


def test_events_give_the_time_of_every_single_step():
    requests = [Request(100 + n, 50 + 37 * n % 211) for n in range(20)]
    for rows in (1, 3, 20):
        assert written_by(PACE, requests, rows, 10**9) == pytest.approx(token_by_token(requests, rows), rel=1e-9)


def test_a_small_cache_lets_fewer_in_and_takes_longer():
    requests = [Request(100, 400)] * 16
    times = [written_by(PACE, requests, 256, cached) for cached in (500, 2000, 8000)]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(16 * written_by(PACE, requests[:1], 256, 500))


def test_an_engine_reads_its_weights_for_every_token():
    assert PACE.step(1, 0) > 2 * 8.19e9 / 3.35e12
    assert PACE.step(64, 0) < 2 * PACE.step(1, 0)
    mixture = Pace(describe(QWEN3_30B_A3B), SETUP.cluster, Engines(1, 1))
    assert mixture.step(1, 0) < PACE.step(1, 0) < mixture.step(256, 0)


def test_the_tail_sets_the_time_of_a_wave():
    job = SETUP.job
    even = replace(SETUP, job=replace(job, lengths=replace(job.lengths, spread=0.0)))
    long, short = wave(SETUP, Engines(1, 8), 10**6), wave(even, Engines(1, 8), 10**6)
    assert long.seconds > 1.5 * short.seconds
    assert long.tokens == pytest.approx(short.tokens, rel=0.02)
    assert short.busy > 0.98


def test_drafts_are_read_instead_of_written():
    drafted = replace(SETUP, job=replace(SETUP.job, drafted=0.5))
    assert wave(drafted, Engines(1, 8), 10**6).seconds < 0.7 * wave(SETUP, Engines(1, 8), 10**6).seconds
