"""Equality of text."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.answers import Question, Score


@dataclass(frozen=True, kw_only=True)
class Exact:
    """1 where the answer, read with single spaces, equals the reference."""

    after: str = ""
    """The answer follows the last of these, '<answer>' for example; empty takes the whole response."""
    ignore_case: bool = False
    """Upper and lower case are the same."""
    finished: bool = False
    """A response that the token budget cut off is wrong, whatever it says."""

    def __call__(self, question: Question) -> Score:
        _, marker, text = question.response.rpartition(self.after) if self.after else ("", "whole", question.response)
        if not marker:
            return Score(reward=0.0, correct=0, extracted=None)
        answer = " ".join(text.split())
        is_whole = question.finish == "stop" or not self.finished
        correct = int(is_whole and self._comparable(answer) == self._comparable(" ".join(question.answer.split())))
        return Score(reward=float(correct), correct=correct, extracted=answer)

    def _comparable(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text
