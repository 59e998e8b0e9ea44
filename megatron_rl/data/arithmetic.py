"""Chained arithmetic modulo 100: a task that a tiny model can guess at or think through, and so learn to think.

    prompt    <q> a 4 7 ; c * 3 ; b + 5 ; c ? <think>
    thinking  a 4 7 b + 5 5 2 c * 3 5 6 <answer> 5 6 <eos>
    guessing  <answer> 5 6 <eos>

The first variable is a two-digit number, each next one the one before it `+`, `-` or `*` a digit; the definitions are
shuffled and the last variable is asked. Its level is the number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from megatron_rl.data.prompt_file import Prompt

LETTERS: Final = "abcdefghijklmno"
OPERATORS: Final = "+-*"
END: Final = "<eos>"
SOURCE: Final = "arithmetic"
_TRIES: Final = 1000


class Step(NamedTuple):
    operator: str
    digit: int

    def of(self, value: int) -> int:
        changed = {"+": value + self.digit, "-": value - self.digit, "*": value * self.digit}
        return changed[self.operator] % 100


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A chain of steps from a first number, and the order its definitions are written in."""

    first: int
    steps: tuple[Step, ...]
    order: tuple[int, ...]

    @property
    def level(self) -> int:
        return len(self.steps)

    @property
    def values(self) -> tuple[int, ...]:
        """The value of every variable."""
        values = [self.first]
        for step in self.steps:
            values.append(step.of(values[-1]))
        return tuple(values)

    @property
    def text(self) -> str:
        lines = [f"a {digits(self.first)}"]
        lines += [
            f"{letter} {step.operator} {step.digit}" for letter, step in zip(LETTERS[1:], self.steps, strict=False)
        ]
        shuffled = " ; ".join(lines[place] for place in self.order)
        return f"<q> {shuffled} ; {LETTERS[self.level]} ? <think>"

    @property
    def answer(self) -> str:
        return digits(self.values[-1])

    @property
    def prompt(self) -> Prompt:
        return Prompt(prompt=self.text, answer=self.answer, source=SOURCE, extra={"level": self.level})


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Problems of these levels, each level as often as the others."""

    easiest: Annotated[int, Ge(1), Le(14)] = 1
    hardest: Annotated[int, Ge(1), Le(14)] = 8

    def prompts(self, count: int, seed: int) -> Iterator[Prompt]:
        return (problem.prompt for problem in self.problems(count, seed))

    def problems(self, count: int, seed: int, without: Set[str] = frozenset()) -> Iterator[Problem]:
        """`count` different problems, none of whose texts is in `without`: held-out ones, for example."""
        if self.easiest > self.hardest:
            raise ValueError(f"arithmetic: easiest ({self.easiest}) is more than hardest ({self.hardest})")
        rng = np.random.Generator(np.random.Philox(seed))
        seen = set(without)
        for _ in range(count):
            problem = self._unseen(rng, seen)
            seen.add(problem.text)
            yield problem

    def _unseen(self, rng: np.random.Generator, seen: Set[str]) -> Problem:
        for _ in range(_TRIES):
            problem = draw(rng, int(rng.integers(self.easiest, self.hardest + 1)))
            if problem.text not in seen:
                return problem
        raise ValueError(
            f"there are hardly more than {len(seen)} problems of the levels {self.easiest} to {self.hardest}; "
            "ask for fewer or for harder ones"
        )


def draw(rng: np.random.Generator, level: int) -> Problem:
    """A random problem of so many steps."""
    steps = tuple(Step(OPERATORS[rng.integers(3)], int(rng.integers(2, 10))) for _ in range(level))
    order = tuple(int(place) for place in rng.permutation(level + 1))
    return Problem(first=int(rng.integers(10, 100)), steps=steps, order=order)


def demonstration(problem: Problem, rng: np.random.Generator, guess: float = 0.0, slip: float = 0.0) -> str:
    """A response to learn from: a guess of the answer alone with probability `guess`, else the steps to it.

    Each step goes wrong with probability `slip`, and what follows goes on from the wrong value.
    """
    if rng.random() < guess:
        return f"<answer> {problem.answer} {END}"
    value = problem.first
    said = [f"a {digits(value)}"]
    for letter, step in zip(LETTERS[1:], problem.steps, strict=False):
        value = step.of(value)
        if rng.random() < slip:
            value = int(value + rng.integers(1, 100)) % 100
        said.append(f"{letter} {step.operator} {step.digit} {digits(value)}")
    return f"{' '.join(said)} <answer> {digits(value)} {END}"


def digits(value: int) -> str:
    """Two digits, apart: 5 is '0 5'."""
    return f"{value // 10} {value % 10}"
