"""Text without what its owner would not show: secrets, names of people, and where their homes are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

GONE: Final = "[redacted]"
_SECRET_WORDS: Final = frozenset(
    ("token", "secret", "password", "passwd", "passphrase", "apikey", "key", "credential", "credentials")
) | frozenset(("auth", "authorization", "cookie", "pat"))
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Logs may hold a line of megabytes: none of these looks at a character once for each character before it.
_ASSIGNED: Final = re.compile(
    r"""(?<![\w.-])(?P<name>[\w.-]++)(?P<sign>["']?\s*[:=]\s*)(?P<value>"[^"\n]*"|'[^'\n]*'|[^\s,;}\]]+)"""
)
_PLAIN: Final = re.compile(r"""["']?(?:[-+]?[\d.]+(?:e[-+]?\d+)?|true|false|null|none)?["']?""", re.IGNORECASE)
_LEAST: Final = 6
"""Shorter values of secret variables are words that a text may hold by chance."""

# What is secret by its looks, wherever it stands.
_LOOKS: Final = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )\S+"),
    re.compile(r"\b(?:hf|gh[pousr]|github_pat|glpat|xox[abprs]|sk|pk|rk)[-_][\w-]{12,}"),
    re.compile(r"\bAKIA[0-9A-Z]{12,}"),
    re.compile(r"\beyJ(?:(?!\beyJ)[\w-])++\.[\w-]++\.[\w-]*"),
    re.compile(r"\b(?=[A-Za-z+=]{0,64}\d)(?=[\d+=]{0,64}[A-Za-z])[A-Za-z0-9+=]{32,}"),
)
_MAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)+")
_HOME: Final = re.compile(r"(?<![\w.])/(?:home|Users|users)/[^/\s\"':,]+|(?<![\w./])/root(?![\w.])")


@dataclass(frozen=True, kw_only=True)
class Redaction:
    """Redaction(secrets=("hunter2!",), people=("ada",)) takes these out too, wherever they stand."""

    secrets: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    """Names of users."""
    homes: tuple[str, ...] = ()
    """Their folders, where those are not below /home."""

    @classmethod
    def of(cls, environment: Mapping[str, str], people: Iterable[str] = ()) -> Redaction:
        """What this environment gives away: the values of its secret variables, and who works in it."""
        secrets = {value for name, value in environment.items() if is_secret(name) and len(value) >= _LEAST}
        names = {*people, *(environment.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER"))} - {"", "root"}
        # The longest first: one secret may hold another.
        by_length = tuple(sorted(secrets, key=len, reverse=True))
        homes = tuple({environment.get("HOME", "").rstrip("/")} - {""})
        return cls(secrets=by_length, people=tuple(sorted(names)), homes=homes)

    def __call__(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, GONE)
        for looks in _LOOKS:
            text = looks.sub(GONE, text)
        text = _ASSIGNED.sub(_without_value, text)
        for home in self.homes:
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
        text = _HOME.sub("~", _MAIL.sub("[mail]", text))
        for name in self.people:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "[user]", text)
        return text


def is_secret(name: str) -> bool:
    """Whether a variable or key of this name holds a secret: `HF_TOKEN` does, `max_tokens` and `tokenizer` do not."""
    is_error = name.endswith(("Error", "Exception"))  # what a KeyError says explains a failure
    return not is_error and not _SECRET_WORDS.isdisjoint(word.lower() for word in _WORD.findall(name))


def _without_value(found: re.Match[str]) -> str:
    name, sign, value = found["name"], found["sign"], found["value"]
    is_shown = not is_secret(name) or value == GONE.rstrip("]") or _PLAIN.fullmatch(value)
    return found[0] if is_shown else f"{name}{sign}{GONE}"
