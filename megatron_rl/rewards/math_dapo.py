"""DAPO's rule: the last `Answer:` line, normalised as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from megatron_rl.answers import Question, Score
from megatron_rl.ops.text import last_boxed

TAIL: Final = 300
_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

# The normalisation of Lewkowycz et al. 2022 (Minerva), appendix D.1, without "ft", which would tear \left apart.
_REWRITTEN: Final = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_DROPPED: Final = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue"),
    *("points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges"),
    *("students", "childrentickets", "multiples"),
    *("\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}"),
    *("\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
)
_MATH = re.compile(r"\$([^$]*)\$")
_DRESSED = re.compile(r"\\(?:text|textbf|overline|boxed)\{([^}]*)\}")
_BARE_FRACTION = re.compile(r"(frac)([^{])(.)")
_BARE_ROOT = re.compile(r"(sqrt)([^{])")


@dataclass(frozen=True, kw_only=True)
class MathDapo:
    """+1 or `wrong`, by text equality of the last `Answer:` line near the end with the reference."""

    wrong: float = -1.0
    """SPEED's setting is 0."""
    box_fallback: bool = False
    """Read the last box where there is no `Answer:` line."""

    def __call__(self, question: Question) -> Score:
        tail = question.response[-TAIL:]
        lines = _ANSWER.findall(tail)
        answer = lines[-1] if lines else last_boxed(tail) if self.box_fallback else None
        if answer is None:
            return Score(reward=self.wrong, correct=0, extracted=None)
        said = normal(answer)
        correct = int(said == normal(question.answer))
        return Score(reward=1.0 if correct else self.wrong, correct=correct, extracted=said)


def normal(answer: str) -> str:
    """An answer without units, dressing and spaces: '$x = 12,000$ dollars' is '12000'."""
    text = answer.split("=")[-1]
    for written, meant in _REWRITTEN:
        text = text.replace(written, meant)
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    if inline := _MATH.search(text):
        text = inline[0]
    text = _DRESSED.sub(r"\1", text)
    text = _BARE_ROOT.sub(r"\1{\2}", _BARE_FRACTION.sub(r"\1{\2}{\3}", text)).replace("$", "").strip()
    return text.replace(",", "") if text.replace(",", "").isdigit() else text
