"""Knights and knaves by the published rule, for comparison with published numbers."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.answers import Question, Score
from megatron_rl.ops.text import knights_right, last_boxed


@dataclass(frozen=True, kw_only=True)
class KnightsOfficial:
    """1 where the box is contained in the reference sentence and nearly as long; a sentence cut short can pass."""

    def __call__(self, question: Question) -> Score:
        correct = int(knights_right(question.response, question.answer))
        return Score(reward=float(correct), correct=correct, extracted=last_boxed(question.response))
