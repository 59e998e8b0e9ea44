"""The judge: grading processes that are killed at a deadline, so that no answer can hold up or harm the run."""

from __future__ import annotations

import json
import math
import os
import selectors
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from annotated_types import Ge, Gt, Le

from megatron_rl.answers import Question, Score
from megatron_rl.batch import columns
from megatron_rl.batch.batch import Batch
from megatron_rl.nursery import Fork, Nursery

Verdict = Literal["right", "wrong", "unparsable", "timeout", "crashed"]

GRADER: Final = "megatron_rl.rewards.grader"
STOPS_FROM: Final = 32
"""Fewer rows than this say too little to stop a run."""


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """How answers are graded."""

    processes: Annotated[int, Ge(0)] = 0
    """Grading processes; 0 takes one for each processor the run may use, 16 at most."""
    deadline_s: Annotated[float, Gt(0)] = 2.0
    """Seconds by the clock that one answer may take before its process is killed."""
    memory_mib: Annotated[int, Ge(64)] = 1024
    """Memory of one grading process."""
    most_characters: Annotated[int, Gt(0)] = 100_000
    """A longer response is read from its end."""
    alarm_share: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of ungraded answers (timeout or crash) from which the metric `judge/alarm` is 1."""
    stop_share: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of ungraded answers, of 32 or more in a row, above which the run stops."""


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One answer's score, what became of the grading, and how long that took."""

    score: Score
    verdict: Verdict
    seconds: float
    error: str = ""


@dataclass(kw_only=True)
class _Item:
    """A question on its way. An answer that could not be graded is asked again as silence, whose score it gets."""

    index: int
    question: Question
    failed: Verdict | None = None
    error: str = ""
    crashes: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True, eq=False)
class _Seat:
    """A grading process, the item it holds and since when."""

    fork: Fork
    item: _Item | None = None
    since: float = 0.0


class RewardPool:
    """A `Judge` that runs one reward, a `package.module:Name` with its fields, in processes it can kill.

    with RewardPool("megatron_rl.rewards.math:Math", {}, JudgeSettings()) as judge:
        judged = judge.judge(batch)
    """

    def __init__(self, target: str, given: Mapping[str, object], settings: JudgeSettings) -> None:
        self.target = target
        self.settings = settings
        self._count = settings.processes or min(16, len(os.sched_getaffinity(0)))
        self._seats: list[_Seat] = []
        self._selector = selectors.DefaultSelector()
        order = {
            "target": target,
            "given": dict(given),
            "memory_bytes": settings.memory_mib << 20,
            "cpu_s": math.ceil(settings.deadline_s) + 2,
        }
        self._nursery = Nursery(GRADER, order)
        self._is_ready = False
        self._recent: list[Graded] = []
        """Since there were enough of them to stop the run over."""

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process of the pool."""
        self._nursery.close()
        for seat in self._seats:
            seat.fork.wire.close()
        self._seats.clear()
        self._selector.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process that forks, then the graders it forked."""
        return (self._nursery.pid, *(seat.fork.pid for seat in self._seats))

    def judge(self, batch: Batch) -> Batch:
        """Writes REWARD, CORRECT, VERDICT and EXTRACTED."""
        began = time.monotonic()
        graded = self.grade(questions_of(batch))
        judged = batch.with_columns(
            {
                columns.REWARD: [each.score.reward for each in graded],
                columns.CORRECT: [each.score.correct for each in graded],
                columns.VERDICT: [each.verdict for each in graded],
                columns.EXTRACTED: [each.score.extracted or "" for each in graded],
            }
        )
        return judged.with_metrics(self._tally(graded) | {"judge/seconds": time.monotonic() - began})

    def _tally(self, graded: Sequence[Graded]) -> dict[str, float]:
        """Shares of the verdicts; an error where more went ungraded than learning from the rest can bear."""
        counts, rows = Counter(each.verdict for each in graded), max(1, len(graded))
        self._recent += graded
        if len(self._recent) >= STOPS_FROM:
            recent, self._recent = self._recent, []
            self._refuse_ungraded(recent)
        shares = {f"judge/{name}": counts[name] / rows for name in ("unparsable", "timeout", "crashed")}
        is_alarming = bool(graded) and _ungraded(counts) / rows > self.settings.alarm_share
        return shares | {"judge/alarm": float(is_alarming)}

    def _refuse_ungraded(self, graded: Sequence[Graded]) -> None:
        counts = Counter(each.verdict for each in graded)
        if (share := _ungraded(counts) / len(graded)) > self.settings.stop_share:
            reason = next((each.error for each in graded if each.error), f"over {self.settings.deadline_s} s each")
            raise RuntimeError(
                f"{self.target} graded only {1 - share:.0%} of {len(graded)} answers "
                f"({counts['timeout']} timeouts, {counts['crashed']} crashes; the first: {reason}); "
                f"judge.stop_share allows {self.settings.stop_share:.0%} ungraded."
            )

    def grade(self, questions: Iterable[Question]) -> list[Graded]:
        """Every question's grade, in order; the same whatever the number of processes."""
        self._make_ready()
        waiting = deque(_Item(index=index, question=self._cut(each)) for index, each in enumerate(questions))
        grades: list[Graded | None] = [None] * len(waiting)
        busy = 0
        while waiting or busy:
            for seat in [seat for seat in self._seats if seat.item is None][: len(waiting)]:
                self._ask(seat, waiting)
            heard, now = self._heard()
            for seat in heard:
                if (item := seat.item) is None:
                    self._replace(seat)
                elif (grade := self._settle(seat, item, now, waiting)) is not None:
                    grades[item.index] = grade
            busy = sum(seat.item is not None for seat in self._seats)
        return [grade for grade in grades if grade is not None]

    def _cut(self, question: Question) -> Question:
        most = self.settings.most_characters
        return question if len(question.response) <= most else replace(question, response=question.response[-most:])

    def _ask(self, seat: _Seat, waiting: deque[_Item]) -> None:
        item = waiting.popleft()
        seat.item, seat.since = item, time.monotonic()
        with suppress(OSError):  # a process that is gone is found when its answer does not come
            seat.fork.wire.sendall(item.question.line())

    def _heard(self) -> tuple[list[_Seat], float]:
        """Seats that answered, died or are overdue, once there is one, and the time; the overdue are killed already."""
        first_end = min(seat.since for seat in self._seats if seat.item is not None) + self.settings.deadline_s
        events = self._selector.select(max(0.0, first_end - time.monotonic()))
        heard = [key.data for key, _ in events if key.data.fork.is_heard()]
        now = time.monotonic()
        late = [
            seat
            for seat in self._seats
            if seat.item is not None and seat not in heard and now >= seat.since + self.settings.deadline_s
        ]
        for seat in late:
            seat.fork.kill()
        return heard + late, now

    def _settle(self, seat: _Seat, item: _Item, now: float, waiting: deque[_Item]) -> Graded | None:
        """The item's grade, or None where it is asked once more; a process that failed or is spent is replaced."""
        taken, line = now - seat.since, seat.fork.line()
        item.seconds = max(item.seconds, taken)
        seat.item = None
        answer = json.loads(line) if line is not None else None
        if answer is None or answer["last"]:
            self._replace(seat)
        if answer is not None and "error" not in answer:
            score = Score(reward=answer["reward"], correct=answer["correct"], extracted=answer["extracted"])
            return _grade(item, score)
        if answer is not None:
            return _silence(item, "crashed", answer["error"], waiting)
        if taken >= self.settings.deadline_s:
            return _silence(item, "timeout", "", waiting)
        item.crashes += 1
        if item.crashes == 1:  # its process may have died of something else, of the machine's memory for one
            waiting.appendleft(item)
            return None
        return _silence(item, "crashed", "its process died twice", waiting)

    def _make_ready(self) -> None:
        if not self._is_ready:
            said = self._nursery.answer()
            if "error" in said:
                raise RuntimeError(f"the reward {self.target} cannot be built: {said['error']}")
            self._is_ready = True
        while len(self._seats) < self._count:
            self._seats.append(self._seated(self._nursery.start()))

    def _seated(self, fork: Fork) -> _Seat:
        fork.wire.settimeout(self.settings.deadline_s)
        seat = _Seat(fork=fork)
        self._selector.register(fork.wire, selectors.EVENT_READ, seat)
        return seat

    def _replace(self, seat: _Seat) -> None:
        self._selector.unregister(seat.fork.wire)
        self._nursery.end(seat.fork)
        self._seats[self._seats.index(seat)] = self._seated(self._nursery.start())


def _grade(item: _Item, score: Score) -> Graded:
    if item.failed is not None:
        silent = Score(reward=score.reward, correct=0, extracted=None)
        return Graded(score=silent, verdict=item.failed, seconds=item.seconds, error=item.error)
    verdict: Verdict = "right" if score.correct else "unparsable" if score.extracted is None else "wrong"
    return Graded(score=score, verdict=verdict, seconds=item.seconds)


def _silence(item: _Item, verdict: Verdict, error: str, waiting: deque[_Item]) -> Graded | None:
    """Asks for the score of an empty response next, so that no answer gains by breaking its grader; 0 if that fails."""
    if item.failed is not None:
        return _grade(item, Score(reward=0.0, correct=0, extracted=None))
    item.failed, item.error, item.question = verdict, error, replace(item.question, response="")
    waiting.appendleft(item)
    return None


def questions_of(batch: Batch) -> list[Question]:
    """What the reward sees of each row; columns a batch lacks are empty."""

    def column(wanted: columns.Column, missing: str) -> list[str]:
        return batch.strings(wanted) if wanted in batch else [missing] * len(batch)

    lengths = batch.ragged(columns.TOKENS).length_B.tolist() if columns.TOKENS in batch else [0] * len(batch)
    rows = zip(
        *(
            batch.strings(columns.RESPONSE_TEXT),
            batch.strings(columns.ANSWER),
            column(columns.PROMPT_TEXT, ""),
            column(columns.SOURCE, ""),
        ),
        *(column(columns.EXTRA, "{}"), column(columns.FINISH, "stop"), lengths),
        strict=True,
    )
    return [
        Question(
            response=response,
            answer=answer,
            prompt=prompt,
            source=source,
            extra=json.loads(extra or "{}"),
            finish=finish,
            length=length,
        )
        for response, answer, prompt, source, extra, finish, length in rows
    ]


def _ungraded(counts: Counter[Verdict]) -> int:
    return counts["timeout"] + counts["crashed"]
