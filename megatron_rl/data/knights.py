"""Knights and knaves, generated: every puzzle is solved by trying all assignments and has exactly one solution.

A statement is a tuple as in the published sets: ("telling-truth", i) and ("lying", i) speak of person i; ("not", s),
("and", s, t), ("or", s, t), ("->", s, t) and ("<=>", s, t) combine statements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from annotated_types import Ge, Le

from megatron_rl.data.prompt_file import Prompt, user
from megatron_rl.data.published import SENTENCE

Statement = tuple[object, ...]
Roles = tuple[bool, ...]
"""True is a knight."""

NAMES: Final = (
    *("Abigail", "Aiden", "Alexander", "Amelia", "Aria", "Aurora", "Ava", "Avery", "Benjamin", "Charlotte"),
    *("Chloe", "Daniel", "David", "Elizabeth", "Ella", "Emily", "Emma", "Ethan", "Evelyn", "Grace"),
    *("Harper", "Henry", "Isabella", "Jack", "Jackson", "Jacob", "James", "Joseph", "Liam", "Lily"),
    *("Logan", "Lucas", "Luke", "Mason", "Matthew", "Mia", "Michael", "Noah", "Oliver", "Olivia"),
    *("Owen", "Penelope", "Riley", "Samuel", "Scarlett", "Sebastian", "Sofia", "Victoria", "William", "Zoey"),
)
SAYINGS: Final = (
    "{name} said that {claim}.",
    "{name} told you that {claim}.",
    '{name} remarked, "{claim}".',
    '{name} noted, "{claim}".',
    'According to {name}, "{claim}".',
    '"{claim}" - {name}.',
    "{name} expressed that {claim}.",
    '{name} was heard saying, "{claim}".',
)
PAIRS: Final = ("and", "or", "->", "<=>")


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """Persons, what each of them says, and who is a knight."""

    names: tuple[str, ...]
    statements: tuple[Statement, ...]
    solution: Roles
    sayings: tuple[str, ...]

    @property
    def quiz(self) -> str:
        spoken = " ".join(
            saying.format(name=name, claim=claim(statement, self.names))
            for saying, name, statement in zip(self.sayings, self.names, self.statements, strict=True)
        )
        return (
            "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves "
            f"always lie. You meet {len(self.names)} inhabitants: {_listed(self.names)}. {spoken} "
            "So who is a knight and who is a knave?"
        )

    @property
    def answer(self) -> str:
        roles = (f"{name} is a {_role(knight)}" for name, knight in zip(self.names, self.solution, strict=True))
        return f"{_listed(tuple(roles))}."


@dataclass(frozen=True, kw_only=True)
class Knights:
    """Puzzles of so many people, each number as often as the others."""

    fewest: Annotated[int, Ge(2), Le(8)] = 2
    most: Annotated[int, Ge(2), Le(8)] = 8
    depth: Annotated[int, Ge(1), Le(4)] = 2
    """How deep statements nest."""

    def prompts(self, count: int, seed: int) -> Iterator[Prompt]:
        """`count` different puzzles; the first ones do not depend on how many are asked for."""
        if self.fewest > self.most:
            raise ValueError(f"knights: fewest ({self.fewest}) is more than most ({self.most})")
        rng = np.random.Generator(np.random.Philox(seed))
        sizes = range(self.fewest, self.most + 1)
        seen: set[str] = set()
        while len(seen) < count:
            puzzle = unique_puzzle(rng, sizes[len(seen) % len(sizes)], self.depth)
            if puzzle.quiz not in seen:
                seen.add(puzzle.quiz)
                yield as_prompt(puzzle)


def as_prompt(puzzle: Puzzle) -> Prompt:
    return Prompt(
        prompt=user(puzzle.quiz + SENTENCE),
        answer=puzzle.answer,
        source=f"knights/{len(puzzle.names)}",
        extra={"names": list(puzzle.names), "solution": list(puzzle.solution), "statements": puzzle.statements},
    )


def unique_puzzle(rng: np.random.Generator, people: int, depth: int) -> Puzzle:
    """A puzzle with exactly one solution."""
    while True:
        statements = tuple(_statement(rng, people, depth) for _ in range(people))
        solutions = solve(statements)
        if len(solutions) == 1:
            names = rng.choice(len(NAMES), size=people, replace=False)
            sayings = rng.integers(len(SAYINGS), size=people)
            return Puzzle(
                names=tuple(NAMES[place] for place in names),
                statements=statements,
                solution=solutions[0],
                sayings=tuple(SAYINGS[place] for place in sayings),
            )


def solve(statements: Sequence[Statement]) -> list[Roles]:
    """Every assignment in which exactly the knights' statements hold."""
    return [
        roles
        for roles in itertools.product((True, False), repeat=len(statements))
        if all(holds(statement, roles) == role for statement, role in zip(statements, roles, strict=True))
    ]


def holds(statement: Statement, roles: Roles) -> bool:
    match statement:
        case ("telling-truth", int(person)):
            return roles[person]
        case ("lying", int(person)):
            return not roles[person]
        case ("not", tuple(inner)):
            return not holds(inner, roles)
        case ("and", tuple(one), tuple(other)):
            return holds(one, roles) and holds(other, roles)
        case ("or", tuple(one), tuple(other)):
            return holds(one, roles) or holds(other, roles)
        case ("->", tuple(one), tuple(other)):
            return not holds(one, roles) or holds(other, roles)
        case ("<=>", tuple(one), tuple(other)):
            return holds(one, roles) == holds(other, roles)
    raise ValueError(f"{statement!r} is no statement")


def claim(statement: Statement, names: Sequence[str]) -> str:
    """The statement in words."""
    match statement:
        case ("telling-truth", int(person)):
            return f"{names[person]} is a knight"
        case ("lying", int(person)):
            return f"{names[person]} is a knave"
        case ("not", (kind, int(person))):
            return f"{names[person]} is not a {_role(kind == 'telling-truth')}"
        case ("not", tuple(inner)):
            return f"it is not the case that {claim(inner, names)}"
        case ("->", tuple(one), tuple(other)):
            return f"If {claim(one, names)} then {claim(other, names)}"
        case ("<=>", tuple(one), tuple(other)):
            return f"{claim(one, names)} if and only if {claim(other, names)}"
        case (str(word), tuple(one), tuple(other)):
            return f"{claim(one, names)} {word} {claim(other, names)}"
    raise ValueError(f"{statement!r} is no statement")


def _statement(rng: np.random.Generator, people: int, depth: int) -> Statement:
    """A random statement: half of what may nest does, and what nests is not the same thing twice."""
    if depth <= 1 or rng.random() < 0.3:
        return (("telling-truth", "lying")[rng.integers(2)], int(rng.integers(people)))
    if rng.random() < 0.15:
        return ("not", _statement(rng, people, 1))
    one, other = _statement(rng, people, depth - 1), _statement(rng, people, depth - 1)
    while other == one:
        other = _statement(rng, people, depth - 1)
    return (PAIRS[rng.integers(len(PAIRS))], one, other)


def _listed(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])}, and {items[-1]}"


def _role(knight: bool) -> str:
    return "knight" if knight else "knave"
