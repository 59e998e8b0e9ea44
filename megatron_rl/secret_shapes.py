"""What is a secret by its looks, wherever it stands: keys of known makers, headers, addresses, random letters."""

from __future__ import annotations

import base64
import binascii
import re
from itertools import pairwise
from typing import Final

GONE: Final = "[redacted]"

# Logs may hold a line of megabytes: none of these looks at a character once for each character before it.
_LOOKS: Final = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
    re.compile(r"(?i)(?<=authorization)(?P<sign>\\*[\"']?\s*[:=]\s*\\*[\"']?)(?:digest [^\n]++|[^\"'\n\\]++)"),
    re.compile(r"(?i)(?<=bearer )\S+"),
    re.compile(r"\b(?:hf|gh[pousr]|github_pat|glpat|xox[abprs]|sk|pk|rk|nvapi|pypi|wandb_v\d+|dckr_pat)[-_][\w-]{12,}"),
    re.compile(r"\bnpm_[A-Za-z0-9]{20,}"),
    re.compile(r"\bAIza[\w-]{30,}"),
    re.compile(r"\bA[KS]IA[0-9A-Z]{12,}"),
    re.compile(r"\beyJ(?:(?!\beyJ)[\w-])++\.[\w-]++\.[\w-]*"),
)
_BASIC: Final = re.compile(r"(?i)(?<=\bbasic )[a-z0-9+/]{6,}={0,2}")
_LETTERS: Final = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{32,}+={0,2}")
_WORD: Final = re.compile(r"[A-Za-z0-9+]{32,}")
_HEX: Final = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_SAID_BEFORE: Final = re.compile(r"(?i)(?:key|token|secret|password|passwd|login|wandb|credential)[^A-Za-z0-9]*\Z")
_LOOK_BACK: Final = 24
_AWS: Final = 40
_CHANGES, _CHANGES_OF_AWS = 0.4, 0.3
"""Of neighbours in random letters more than this share are of different kinds; in paths few are, and few paths have
just the length of AWS's secrets."""


def without_secret_shapes(text: str) -> str:
    for looks in _LOOKS:
        text = looks.sub(lambda found: f"{found.groupdict().get('sign') or ''}{GONE}", text)
    text = _BASIC.sub(lambda found: GONE if _names_a_user(found[0]) else found[0], text)
    return _LETTERS.sub(_without_random, text)


def _names_a_user(encoded: str) -> bool:
    """Whether this is `user:password` in base64, and no word."""
    try:
        said = base64.b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return False
    return ":" in said and said.isprintable()


def _without_random(found: re.Match[str]) -> str:
    letters = found[0]
    if _is_random(letters):
        return GONE
    # A path, perhaps, of which a part is a secret.
    return _WORD.sub(lambda part: _without_key(part, found), letters)


def _without_key(part: re.Match[str], whole: re.Match[str]) -> str:
    """Without a word of letters and digits, unless it is a hash: these name commits, files and machines."""
    word = part[0]
    if word.isalpha() or word.isdecimal():
        return word
    if not _HEX.fullmatch(word):
        return GONE
    start = whole.start() + part.start()
    return GONE if _SAID_BEFORE.search(whole.string[max(0, start - _LOOK_BACK) : start]) else word


def _is_random(letters: str) -> bool:
    """Upper, lower and digits in such disorder as no path has; keys in base64 have `/` among them too."""
    kinds = [(each.isupper(), each.isdigit()) for each in letters.rstrip("=") if each.isalnum()]
    changes = sum(one != other for one, other in pairwise(kinds))
    share = _CHANGES_OF_AWS if len(letters) == _AWS and not letters.startswith("/") else _CHANGES
    return len(letters) >= _AWS and len(set(kinds)) == 3 and changes > share * len(kinds)
