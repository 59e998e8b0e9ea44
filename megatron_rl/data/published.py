"""Public data sets as they are published, and how a row of each becomes a prompt.

The fields are those of the files on the hub; where a set has several mirrors, every mirror's spelling is tried in turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from megatron_rl.data.dialects import answer_text, read_prompt
from megatron_rl.data.prompt_file import Prompt, user
from megatron_rl.data.records import Fields, Record
from megatron_rl.ops.text import last_boxed

Answer = Callable[[Fields], str]

BOXED: Final = " Let's think step by step and output the final answer within \\boxed{}."
HASHES: Final = ' Let\'s think step by step and output the final answer after "####".'
SENTENCE: Final = (
    " Let's think step by step and output the final answer (should be a sentence) within \\boxed{{}}."  # as published
)
_PROBLEM: Final = ("problem", "question", "Problem", "Question")
_HASHED = re.compile(r"####\s*(-?[0-9.,]+)")


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """One data set: which field is the problem, how the answer is found, what is asked of the model."""

    source: str
    answer: Answer
    suffix: str = BOXED
    problem: tuple[str, ...] = _PROBLEM
    kept: tuple[str, ...] = ()
    """Fields that go into `extra` where a row has them."""

    def prompt(self, record: Record) -> Prompt:
        """The row as a prompt. ValueError says what is missing."""
        if record.unreadable:
            raise ValueError(record.unreadable)
        problem = field_of(record.fields, *self.problem)
        extra = {key: record.fields[key] for key in self.kept if record.fields.get(key) is not None}
        return Prompt(
            prompt=user(problem + self.suffix),
            answer=answer_text(self.answer(record.fields)),
            source=self.source,
            extra={"index": record.row, **extra},
        )


@dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """A data set that is published as prompt rows; rows of one published index are one prompt."""

    source: str

    def prompt(self, record: Record) -> Prompt:
        found = read_prompt(record)
        return Prompt(prompt=found.prompt, answer=found.answer, source=self.source, extra=found.extra)


@dataclass(frozen=True, kw_only=True)
class EitherSet:
    """A data set that people have both raw and as prompt rows."""

    raw: PublishedSet

    def prompt(self, record: Record) -> Prompt:
        is_prepared = "reward_model" in record.fields and "prompt" in record.fields
        return PreparedSet(source=self.raw.source).prompt(record) if is_prepared else self.raw.prompt(record)


def field_of(fields: Fields, *names: str) -> str:
    """The first of these fields that holds text."""
    for name in names:
        value = fields.get(name)
        if value is not None and not isinstance(value, list | dict | bytes) and str(value).strip():
            return str(value).strip()
    for name in names:
        if name in fields:
            raise ValueError(f"needs text in '{name}', got {fields[name]!r:.60}")
    raise ValueError(f"needs {' or '.join(repr(name) for name in names)}, has {sorted(fields)}")


def given(*names: str) -> Answer:
    """The answer as a field of its own; a float that is whole is written without its point."""

    def answer(fields: Fields) -> str:
        for name in names:
            if fields.get(name) not in (None, ""):
                return answer_text(fields[name])
        raise ValueError(f"needs {' or '.join(repr(name) for name in names)}, has {sorted(fields)}")

    return answer


def boxed(*names: str) -> Answer:
    """The content of the last box of a worked solution."""

    def answer(fields: Fields) -> str:
        found = last_boxed(field_of(fields, *names))
        if found is None:
            raise ValueError(f"has no closed \\boxed{{...}} in {' or '.join(repr(name) for name in names)}")
        return found

    return answer


def first_of(*answers: Answer) -> Answer:
    """The first way that finds an answer; the last one's complaint if none does."""

    def answer(fields: Fields) -> str:
        for each in answers[:-1]:
            try:
                return each(fields)
            except ValueError:
                continue
        return answers[-1](fields)

    return answer


def hashed(fields: Fields) -> str:
    """GSM8K's number, after the last `####`."""
    found = _HASHED.findall(field_of(fields, "answer"))
    if not found:
        raise ValueError("has no number after '####' in 'answer'")
    return found[-1].replace(",", "").rstrip(".")


def comparable(find: Answer) -> Answer:
    """An answer that can be compared: NuminaMath marks proofs and lost answers where the answer would stand."""

    def answer(fields: Fields) -> str:
        found = find(fields)
        if found.lower().replace(" ", "") in ("proof", "notfound"):
            raise ValueError(f"has no answer to compare, but {found!r}")
        return found

    return answer


_FIELD_OR_BOX: Final = first_of(given("answer", "Answer"), boxed("solution", "Solution"))
_IDENTITY: Final = ("id", "ID", "url", "year")

PUBLISHED: Final[Mapping[str, PublishedSet | PreparedSet | EitherSet]] = {
    "gsm8k": PublishedSet(source="openai/gsm8k", answer=hashed, suffix=HASHES, kept=("answer",)),
    "math": PublishedSet(
        source="DigitalLearningGmbH/MATH-lighteval", answer=boxed("solution"), kept=("level", "type", "subject")
    ),
    "math500": PublishedSet(
        source="HuggingFaceH4/MATH-500", answer=_FIELD_OR_BOX, kept=("subject", "level", "unique_id")
    ),
    "dapo17k": PreparedSet(source="math_dapo"),
    "numina": PublishedSet(
        source="AI-MO/NuminaMath",
        answer=comparable(_FIELD_OR_BOX),
        kept=("source", "problem_type", "uuid"),
    ),
    "deepscaler": PublishedSet(source="agentica-org/DeepScaleR-Preview-Dataset", answer=_FIELD_OR_BOX),
    "open_rs": PublishedSet(source="knoveleng/open-rs", answer=_FIELD_OR_BOX, kept=("level",)),
    "knights": PublishedSet(
        source="K-and-K/knights-and-knaves",
        problem=("quiz",),
        answer=given("solution_text"),
        suffix=SENTENCE,
        kept=("names", "solution", "statements", "index"),
    ),
    "knights_jspo": EitherSet(
        raw=PublishedSet(
            source="self-label-zanette-lab/knight-knave", problem=("question",), answer=given("answer"), suffix=SENTENCE
        )
    ),
    "amc23": PublishedSet(source="amc23", answer=_FIELD_OR_BOX, kept=_IDENTITY),
    "aime24": PublishedSet(source="aime24", answer=_FIELD_OR_BOX, kept=_IDENTITY),
    "aime25": PublishedSet(source="aime25", answer=_FIELD_OR_BOX, kept=_IDENTITY),
}
"""By the name that `megatron-rl data` takes."""
