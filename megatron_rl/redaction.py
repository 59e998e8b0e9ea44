"""Text without what its owner would not show: secrets, names of people, and where their homes are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from megatron_rl.secret_names import is_pass_phrase, is_secret
from megatron_rl.secret_shapes import GONE, without_secret_shapes

# Logs may hold a line of megabytes: none of these looks at a character once for each character before it.
_NAMED: Final = re.compile(r"""(?<![\w.-])(?P<name>[\w.-]++)\\*["']?\s*[:=]\s*""")
_OPTION: Final = re.compile(
    r"""(?<![\w.-])--?(?P<name>[A-Za-z][\w.-]*+)(?:["']?,?[ \t]+|["']?,?[ \t]*\n[ \t]*-[ \t]+)"""
)
"""--token Zx81, ["--token", "Zx81"], and the two as lines of a list."""
_VALUE: Final = re.compile(
    r"""(?P<quote>\\*["'])(?P<quoted>(?:(?!(?P=quote))(?:\\\\\\.|\\.|[^\n]))*+)(?:(?P=quote))?|[^\s,;}\]]+"""
)
"""What is quoted ends with its quote or its line; the quotes of JSON within JSON have backslashes before them."""
_BLOCK: Final = re.compile(
    r"""(?m)^(?P<indent>[ ]*+)(?P<head>(?:-[ ]++)*+["']?(?P<name>[\w.-]++)["']?[ \t]*:[ \t]*+)"""
    r"""(?:[|>][-+\d]*+[ \t]*+(?:\#[^\n]*+)?(?:\n(?:[ \t]*+$|(?P=indent)[ ][^\n]*+))++"""
    r"""|\n(?:(?P=indent)[ ]*+-[ ]+[^\n]*+(?:\n|\Z))++)"""
)
"""A value of several lines in YAML: a block scalar, or a list."""
_PLAIN: Final = re.compile(r"""(?P<number>[-+]?[\d.]+(?:e[-+]?\d+)?)|true|false|null|none|""", re.IGNORECASE)
_LEAST: Final = 6
"""Shorter values of secret variables are words that a text may hold by chance."""
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
        text = _BLOCK.sub(_without_block, text)
        text = without_secret_shapes(text)
        for naming in (_NAMED, _OPTION):
            text = "".join(_without_values(text, naming))
        for home in self.homes:
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
        text = _HOME.sub("~", _MAIL.sub("[mail]", text))
        for name in self.people:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "[user]", text)
        return text


def _without_values(text: str, naming: re.Pattern[str]) -> Iterator[str]:
    """The text in pieces, without what stands behind the names of secrets."""
    done = 0
    for found in naming.finditer(text):
        if found.start() < done or not is_secret(found["name"]):
            continue
        value = _VALUE.match(text, found.end())
        if value is None or _is_shown(found["name"], value):
            continue
        yield text[done : found.end()]
        yield GONE
        done = value.end()
    yield text[done:]


def _is_shown(name: str, value: re.Match[str]) -> bool:
    """Numbers and words that are no secrets: `key: 3`; but a number may be a password."""
    said = value["quoted"] if value["quote"] else value[0]
    if said.startswith(GONE.rstrip("]")) or (name.lower() == "pwd" and said.startswith(("/", "~"))):
        return True
    plain = _PLAIN.fullmatch(said)
    return plain is not None and not (plain["number"] and is_pass_phrase(name))


def _without_block(found: re.Match[str]) -> str:
    if not is_secret(found["name"]):
        return found[0]
    return f"{found['indent']}{found['head'].rstrip()} {GONE}" + ("\n" if found[0].endswith("\n") else "")
