"""The prompt file: Parquet with `prompt_id`, `prompt`, `source`, `answer` and `extra`.

    prompt_id           prompt                                source   answer  extra
    "5f0c9a…(16 hex)"   [{role: "user", content: "2 + 2?"}]   "toy"    "4"     '{"level": 1}'

`prompt` is chat messages, or in another file plain text; `extra` is a JSON object for rewards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Message = Mapping[str, str]
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row of a prompt file. Text that UTF-8 cannot hold, half a surrogate pair, is a ValueError."""

    prompt: str | Sequence[Message]
    answer: str
    source: str
    extra: Mapping[str, object] = field(default_factory=dict)
    prompt_id: str = ""
    """Derived from source and prompt where it is empty."""

    def __post_init__(self) -> None:
        text = self.prompt if isinstance(self.prompt, str) else _canonical(self.prompt)
        f"{self.prompt_id}{self.source}{self.answer}{text}".encode()

    @property
    def identity(self) -> str:
        return self.prompt_id or prompt_id(self.source, self.prompt)


def prompt_id(source: str, prompt: str | Sequence[Message]) -> str:
    """16 hex digits that only this text of this source has; a lone user message counts as its text."""
    is_lone = not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user"
    text = prompt if isinstance(prompt, str) else prompt[0]["content"] if is_lone else _canonical(prompt)
    return hashlib.sha256(f"{source}\0{text}".encode()).hexdigest()[:16]


def _canonical(messages: Sequence[Message]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def user(text: str) -> list[Message]:
    """A prompt of one user message."""
    return [{"role": "user", "content": text}]


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> int:
    """Writes the file and returns how many rows it has; of rows with one identity the first stays."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.identity, prompt)
    rows = list(first.values())
    is_text = bool(rows) and all(isinstance(row.prompt, str) for row in rows)
    written = [row.prompt if is_text or not isinstance(row.prompt, str) else user(row.prompt) for row in rows]
    table = pa.table(
        {
            "prompt_id": pa.array([row.identity for row in rows], pa.string()),
            "prompt": pa.array(written, pa.string() if is_text else MESSAGES),
            "source": pa.array([row.source for row in rows], pa.string()),
            "answer": pa.array([row.answer for row in rows], pa.string()),
            "extra": pa.array([json.dumps(dict(row.extra), default=str) for row in rows], pa.string()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return len(rows)
