"""Functions of the user's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, SupportsFloat

from megatron_rl.answers import Question, Score

COMPUTE_SCORE: Final = ("data_source", "solution_str", "ground_truth", "extra_info")


@dataclass(frozen=True, kw_only=True)
class Function:
    """What `path` returns: a Score, a number, or a mapping with `score` and perhaps `acc` and `pred`.

    Function(path="my_rewards:compute_score") calls it as verl would, with data_source, solution_str, ground_truth and
    extra_info; a function of one argument gets the Question.
    """

    path: str
    """`package.module:function`."""
    right_from: float = 1.0
    """A number counts as correct from here on, where the function does not say."""

    def __post_init__(self) -> None:
        _ = self._takes_question  # a wrong path ends the run before its first question

    def __call__(self, question: Question) -> Score:
        if self._takes_question:
            returned = self._function(question)
        else:
            returned = self._function(
                data_source=question.source,
                solution_str=question.response,
                ground_truth=question.answer,
                extra_info=dict(question.extra),
            )
        return self._score(returned)

    def _score(self, returned: object) -> Score:
        if isinstance(returned, Score):
            return returned
        named = returned if isinstance(returned, Mapping) else {"score": returned}
        if not isinstance(given := named.get("score"), SupportsFloat):  # numpy's and torch's numbers are no float
            raise TypeError(
                f"{self.path} returned {returned!r}; a reward is a Score, a number or a mapping with 'score'"
            )
        number, extracted = float(given), named.get("pred")
        return Score(
            reward=number,
            correct=int(bool(named.get("acc", number >= self.right_from))),
            extracted=str(given if extracted is None else extracted),
        )

    @cached_property
    def _function(self) -> Callable[..., object]:
        module, _, name = self.path.partition(":")
        found: object = getattr(importlib.import_module(module), name, None)
        if not callable(found):
            raise ValueError(f"'{self.path}' is no function; write package.module:function")
        return found

    @cached_property
    def _takes_question(self) -> bool:
        taken = inspect.signature(self._function).parameters
        if set(COMPUTE_SCORE) <= set(taken) or any(each.kind is each.VAR_KEYWORD for each in taken.values()):
            return False
        if len(taken) == 1:
            return True
        raise ValueError(f"{self.path} takes {list(taken)}; a reward takes one Question, or {', '.join(COMPUTE_SCORE)}")
