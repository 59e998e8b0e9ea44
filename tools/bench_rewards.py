"""How fast answers are graded, and what answers made to break a grader cost.

    python -m tools.bench_rewards [--answers 600] [--rounds 3] [--hard 0] [--deadline-s 2]

Prints verifications a second of bare math-verify in this process and of a pool with one grader on the same answers, the
best of alternating rounds, by the clock and by the processor seconds of every process that took part, which a busy
machine does not stretch; then, with `--hard 1000`, the seconds that so many hard answers take each, and how soon a
pool of two is back at its rate.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from math_verify import parse, verify

from megatron_rl.answers import Question
from megatron_rl.rewards.pool import Graded, JudgeSettings, RewardPool
from tools.hard_answers import hard, ordinary

MATH = "megatron_rl.rewards.math:Math"
RATE_WINDOW_S = 1.0


def bare(questions: Sequence[Question]) -> int:
    """Right answers by math-verify alone, as its users call it."""
    return sum(
        verify(
            parse(f"\\boxed{{{each.answer}}}", parsing_timeout=None),
            parse(each.response, parsing_timeout=None),
            timeout_seconds=None,
        )
        for each in questions
    )


def processor_s() -> float:
    """Processor seconds of this process and of all it started, ended ones included."""
    ours = psutil.Process()
    spent = 0.0
    for process in (ours, *ours.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system + times.children_user + times.children_system
    return spent


def rates(count: int, work: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and by the processor's time."""
    began, spent = time.monotonic(), processor_s()
    work()
    return count / (time.monotonic() - began), count / max(processor_s() - spent, 0.01)


def side_by_side(answers: int, rounds: int) -> float:
    """Prints both rates; returns ours over theirs, by the processor's time."""
    bare_rates, pool_rates = (0.0, 0.0), (0.0, 0.0)
    with RewardPool(MATH, {}, JudgeSettings(processes=1)) as pool:
        bare(ordinary(12)), pool.grade(ordinary(12))
        for turn in range(rounds):
            questions = ordinary(answers, first=2 + turn * answers)
            bare_rates = _best(bare_rates, rates(answers, partial(bare, questions)))
            pool_rates = _best(pool_rates, rates(answers, partial(pool.grade, questions)))
    for kind, theirs, ours in zip(("clock", "processor"), bare_rates, pool_rates, strict=True):
        print(f"bare math-verify   {theirs:8.0f} verifications a second by the {kind}")
        print(f"pool, one grader   {ours:8.0f}   {ours / theirs:.2f} of bare")
    return pool_rates[1] / bare_rates[1]


def _best(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])


def assault(count: int, deadline_s: float, canary: Path) -> tuple[list[Graded], float]:
    """The grades of so many hard answers, and the pool's rate in the second after them over its rate before."""
    with RewardPool(MATH, {}, JudgeSettings(processes=2, deadline_s=deadline_s)) as pool:
        pool.grade(ordinary(200))
        before = max(_rate_in_window(pool) for _ in range(2))
        graded = pool.grade(hard(count, canary))
        return graded, _rate_in_window(pool) / before


def _rate_in_window(pool: RewardPool) -> float:
    began, done = time.monotonic(), 0
    while time.monotonic() - began < RATE_WINDOW_S:
        pool.grade(ordinary(60))
        done += 60
    return done / (time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hard", type=int, default=0)
    parser.add_argument("--deadline-s", type=float, default=2.0)
    asked = parser.parse_args(arguments)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    side_by_side(asked.answers, asked.rounds)
    if asked.hard:
        with tempfile.TemporaryDirectory() as folder:
            graded, back = assault(asked.hard, asked.deadline_s, Path(folder, "canary"))
            seconds = sorted(each.seconds for each in graded)
            p99 = seconds[int(0.99 * (len(seconds) - 1))]
            print(
                f"{asked.hard} hard answers  p99 {p99:.3f} s, worst {seconds[-1]:.3f} s, deadline {asked.deadline_s} s"
            )
            print(f"verdicts           {dict(Counter(each.verdict for each in graded))}")
            print(f"rate after         {back:.2f} of before, in the second that follows")
            print(f"executed           {'nothing' if not any(Path(folder).iterdir()) else 'CODE OF AN ANSWER'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
