"""Symbolic equality, by math-verify."""

from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from megatron_rl.answers import Question, Score
from megatron_rl.ops.text import last_boxed

_LATEX: Final = (LatexExtractionConfig(boxed_match_priority=0),)
_ANYTHING: Final = (*_LATEX, ExprExtractionConfig())

# The pool ends what takes too long; math-verify's own alarm is off and need not say so at every answer.
logging.getLogger("math_verify").setLevel(logging.ERROR)


@dataclass(frozen=True, kw_only=True)
class Math:
    """1 where the last box, or else the end of the response, equals the reference as mathematics."""

    expressions: bool = True
    """Without a box, plain expressions such as 1/2 count too; off reads LaTeX alone."""
    tail_characters: int = 2000
    """Without a box, how much of the end is searched."""
    longest: int = 1000
    """Characters an answer may have; a longer one is not an answer."""
    most_digits: int = 400
    """Digits one number of an answer may have."""

    def __post_init__(self) -> None:
        _equal(
            "\\frac{1}{2}", "\\boxed{\\sqrt{x} + (1, 2]}", True
        )  # builds the grammar's tables before the first answer

    def __call__(self, question: Question) -> Score:
        boxed = last_boxed(question.response)
        answer = _visible(question.response[-self.tail_characters :] if boxed is None else boxed).strip()
        if boxed is not None and (len(answer) > self.longest or not answer):
            return Score(reward=0.0, correct=0, extracted=None)
        if re.search(rf"\d{{{self.most_digits + 1}}}", answer):
            return Score(reward=0.0, correct=0, extracted=None)
        if boxed is not None and answer == question.answer.strip():
            return Score(reward=1.0, correct=1, extracted=answer)
        correct, extracted = _equal(question.answer, answer if boxed is None else _box(answer), self.expressions)
        return Score(reward=float(correct), correct=correct, extracted=extracted)


def _box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _visible(text: str) -> str:
    """Without zero-width and direction characters, which a reader does not see and a parser trips over."""
    return text if text.isascii() else "".join(each for each in text if unicodedata.category(each) != "Cf")


@lru_cache(maxsize=256)
def _truth(answer: str) -> list[Any]:
    return list(parse(_box(answer), extraction_config=_ANYTHING, parsing_timeout=None))


def _equal(truth: str, text: str, expressions: bool) -> tuple[int, str | None]:
    """Whether the text's answer equals the truth, and that answer as written; None where none is found."""
    found = parse(text, extraction_config=_ANYTHING if expressions else _LATEX, parsing_timeout=None)
    if not found:
        return 0, None
    return int(verify(_truth(truth), found, timeout_seconds=None)), str(found[-1])
