"""An answer to be scored, and its score: plain records that a grading process reads without waking torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class Question:
    r"""What a reward sees of one rollout.

    Question(response="... so \\boxed{42}", answer="42", source="openai/gsm8k", length=187)
    """

    response: str
    answer: str
    prompt: str = ""
    source: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    finish: str = "stop"
    length: int = 0
    """Response tokens, for rewards that look at length."""

    def line(self) -> bytes:
        """The question as one line of JSON; ASCII, so that no character of a response can end the line."""
        return json.dumps(asdict(self)).encode("ascii") + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Question:
        return cls(**json.loads(line))


@dataclass(frozen=True, kw_only=True)
class Score:
    """A reward's answer. `correct`, 0 or 1, is what selection uses; `extracted` is None where nothing was parsed."""

    reward: float
    correct: int
    extracted: str | None
