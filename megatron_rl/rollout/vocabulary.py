"""Text of tokens, and the tokens that end a response."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """How an engine reads what it wrote: Vocabulary(decode=tokenizer.decode, end=(2,), stop=("</answer>",))."""

    decode: Decode
    end: tuple[int, ...]
    """Tokens that end a response."""
    stop: tuple[str, ...] = ()
    """Texts that end a response."""

    def is_stopped(self, tokens: Sequence[int]) -> bool:
        """Whether the last token ends the response or completes a stop text.

        A text is looked for in the last tokens only, as many as it has characters: the last token must be part of it.
        """
        if tokens and tokens[-1] in self.end:
            return True
        return any(stop in self.decode(tokens[-len(stop) :]) for stop in self.stop)


def end_tokens(folder: Path, also: int | None = None) -> tuple[int, ...]:
    """The end tokens that a Hugging Face folder names, and the tokenizer's own where it is given."""
    found: list[int] = [] if also is None else [also]
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return tuple(dict.fromkeys(found))
