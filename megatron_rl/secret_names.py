"""Which names of variables, keys and options are those of secrets."""

from __future__ import annotations

import re
from typing import Final

_PASS_PHRASES: Final = frozenset(("password", "passwd", "passphrase", "pwd"))
_SECRETS: Final = _PASS_PHRASES | frozenset(
    ("token", "secret", "apikey", "key", "credential", "credentials", "auth", "authorization", "cookie", "pat")
)
_ENDS: Final = ("token", "secret", "password", "passwd", "passphrase", "apikey", "accesskey", "secretkey", "privatekey")
"""What a word of several that were written as one ends with: accesstoken, dbpassword."""
_KINDS: Final = frozenset(
    (
        *("bos", "cls", "eos", "first", "image", "input", "last", "mask", "new", "next", "output", "pad", "per", "pre"),
        *("prompt", "sep", "special", "stop", "sub", "unk"),
    )
)
_MEASURES: Final = frozenset(
    (
        *("age", "ages", "budget", "count", "counts", "embedding", "embeddings", "id", "ids", "length", "lengths"),
        *("level", "limit", "logprob", "logprobs", "loss", "mask", "masks", "mean", "type", "types", "version"),
        *("versions", "weight", "weights"),
    )
)
"""What before and behind `token` says that it is one of a text: eos_token, token_versions."""
_FOLDERS: Final = ("PWD", "OLDPWD")
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret(name: str) -> bool:
    """Whether a variable or key of this name holds a secret: `HF_TOKEN` does, `max_tokens` and `tokenizer` do not."""
    if name in _FOLDERS or name.endswith(("Error", "Exception")):  # what a KeyError says explains a failure
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    found = {word for word in words if word in _SECRETS or _is_glued(word)}
    return bool(found - {"token"}) or ("token" in found and not _is_of_text(words))


def is_pass_phrase(name: str) -> bool:
    """Whether even a number is a secret under this name."""
    return any(word.lower().endswith(tuple(_PASS_PHRASES)) for word in _WORD.findall(name))


def _is_of_text(words: list[str]) -> bool:
    at = words.index("token")
    return not (_KINDS.isdisjoint(words[max(0, at - 1) : at]) and _MEASURES.isdisjoint(words[at + 1 : at + 2]))


def _is_glued(word: str) -> bool:
    return any(word.endswith(end) and word.removesuffix(end) not in _KINDS for end in _ENDS)
