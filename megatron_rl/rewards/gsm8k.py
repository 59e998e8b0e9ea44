"""GSM8K's published rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_rl.answers import Question, Score
from megatron_rl.ops.text import gsm8k_answer


@dataclass(frozen=True, kw_only=True)
class Gsm8k:
    """1 where the response's number is the reference, as text."""

    mode: Literal["strict", "flexible"] = "strict"
    """'strict' reads the last `#### number` near the end; 'flexible' the last number anywhere."""

    def __call__(self, question: Question) -> Score:
        answer = gsm8k_answer(question.response, self.mode)
        correct = int(answer == question.answer)
        return Score(reward=float(correct), correct=correct, extracted=answer)
