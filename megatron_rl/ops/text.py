"""Answers read out of responses: the last box, GSM8K's number, and the published knights-and-knaves rule."""

from __future__ import annotations

import re
import string
from typing import Literal

BOX = "\\boxed{"
GSM8K_TAIL = 300
KNIGHTS_SHARE = 0.7

_STRICT_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[0-9.,]+")
_ONE_LINE_BOX = re.compile(r"\\boxed\{(.*?)\}")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...}, braces balanced; None if there is no box or the last one never closes."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    start += len(BOX)
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def gsm8k_answer(text: str, mode: Literal["strict", "flexible"] = "strict") -> str | None:
    """GSM8K's number. Strict: the last `#### number` near the end, no commas. Flexible: the last number as written."""
    if mode == "strict":
        found = _STRICT_NUMBER.findall(text[-GSM8K_TAIL:])
        return found[-1].replace(",", "") if found else None
    if mode == "flexible":
        pieces = [piece for piece in _NUMBER.findall(text) if piece != "."]
        return pieces[-1] if pieces else None
    raise ValueError(f"a GSM8K extraction is 'strict' or 'flexible', got {mode!r}")


def gsm8k_right(text: str, truth: str, mode: Literal["strict", "flexible"] = "strict") -> bool:
    return gsm8k_answer(text, mode) == truth


def knights_right(text: str, truth: str) -> bool:
    r"""The published rule for knights and knaves: the last one-line box is contained in the truth and nearly as long.

    It takes the box up to the first brace and compares without case and punctuation, so a sentence cut short can pass.
    """
    boxes = _ONE_LINE_BOX.findall(text)
    if not boxes:
        return False
    answer, wanted = _plain(boxes[-1]), _plain(truth)
    return bool(answer) and answer in wanted and len(answer) >= KNIGHTS_SHARE * len(wanted)


def _plain(text: str) -> str:
    return text.strip().lower().translate(_PUNCTUATION)
