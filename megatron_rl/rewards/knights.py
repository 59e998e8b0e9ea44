"""Knights and knaves by meaning: who is said to be what, for everybody."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_rl.answers import Question, Score
from megatron_rl.ops.text import last_boxed

Roles = dict[str, str]

_NAME = r"[^\W\d_][\w'’-]*"
_ONE = re.compile(rf"({_NAME})\s*(?:\bis\b|=|:|->|→|–|-)\s*(not\s+)?(?:an?\s+|the\s+)?(knight|knave)\b", re.IGNORECASE)
_MANY = re.compile(
    rf"({_NAME}(?:\s*,\s*(?:and\s+)?{_NAME}|\s+and\s+{_NAME})+)\s+are\s+(not\s+)?(?:both\s+|all\s+)?(knight|knave)s\b",
    re.IGNORECASE,
)
_JOINT = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+", re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|textit)\b|[\\{}$*~]")
_OTHER = {"knight": "knave", "knave": "knight"}
_LONGEST = 4000


@dataclass(frozen=True, kw_only=True)
class Knights:
    """1 where the last box names the same role as the reference for each person, in any order and wording."""

    def __call__(self, question: Question) -> Score:
        found = roles(_stated(question.response))
        if not found:
            return Score(reward=0.0, correct=0, extracted=None)
        correct = int(found == roles(question.answer))
        said = ", ".join(f"{name} {role}" for name, role in sorted(found.items()))
        return Score(reward=float(correct), correct=correct, extracted=said)


def roles(text: str) -> Roles:
    """Role by lower-case name; 'both' where the text says one person to be either."""
    plain = _MARKUP.sub(" ", text[-_LONGEST:])
    said = [(name, negated, role) for name, negated, role in _ONE.findall(plain)]
    said += [(name, negated, role) for names, negated, role in _MANY.findall(plain) for name in _JOINT.split(names)]
    found: Roles = {}
    for name, negated, role in said:
        meant = _OTHER[role.lower()] if negated else role.lower()
        key = name.casefold()
        found[key] = meant if found.get(key, meant) == meant else "both"
    return found


def _stated(response: str) -> str:
    """The conclusion: the last box, else what follows the last `<answer>`."""
    boxed = last_boxed(response)
    return boxed if boxed is not None else response.rpartition("<answer>")[2] if "<answer>" in response else ""
