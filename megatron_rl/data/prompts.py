"""The prompts of a run, tokenized and within their length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Gt

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ANSWER,
    EXTRA,
    PROMPT_ID,
    PROMPT_TEXT,
    PROMPT_TOKENS,
    REFERENCE_REWARDS,
    SOURCE,
)
from megatron_rl.data.dialects import read_prompt
from megatron_rl.data.prompt_file import Prompt
from megatron_rl.data.records import Issue, read_records
from megatron_rl.data.tokenizer import Chat, Template, Tokenizer

TOKENIZED_AT_ONCE = 4096
RESERVED = {
    "messages",
    "conversations",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
}
"""Variables of a chat template that are not its user's to set."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which prompts a run sees, and how they are put to the model."""

    train: tuple[Path, ...]
    """Prompt files or folders of them: this project's parquet, verl's parquet, slime's and DAPO's JSON lines."""
    evaluate: tuple[Path, ...] = ()
    """Held-out prompts."""
    max_prompt_tokens: Annotated[int, Gt(0)] = 2048
    """Longer prompts are left out."""
    chat: Chat = "messages"
    """'messages': chat messages go through the tokenizer's template, text stays as it is. 'always': text too, as a
    user's message. 'never': the contents of messages, joined by empty lines."""
    system: str = ""
    """Put before messages that have no system message."""
    template: dict[str, object] = field(default_factory=dict)
    """Further variables of the chat template, {enable_thinking: false} for example."""
    strict: bool = False
    """A malformed row is an error instead of being left out and counted."""
    values: Path | None = None
    """Rewards of the reference policy's rollouts, as `megatron-rl values` writes them; A*-PO needs them."""
    solvable: bool = True
    """With `values`: prompts that the reference policy never got a positive reward on are left out."""

    def __post_init__(self) -> None:
        if given := sorted(RESERVED & self.template.keys()):
            raise ValueError(f"template has {', '.join(given)}, which each prompt gives; leave it out")


@dataclass(frozen=True, kw_only=True)
class Omitted:
    """Rows that are not among the prompts."""

    issues: tuple[Issue, ...] = ()
    """Malformed rows."""
    duplicates: int = 0
    conflicting: int = 0
    """Duplicates whose reference answer differs from the first one's, which stays."""
    too_long: int = 0
    unsolved: int = 0
    """Prompts without a positive reward in a value run."""

    def __str__(self) -> str:
        counts = {
            "malformed": len(self.issues),
            "duplicates": self.duplicates,
            "of them with another answer": self.conflicting,
            "too long": self.too_long,
            "never solved": self.unsolved,
        }
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        first = f"; the first malformed: {self.issues[0]}" if self.issues else ""
        return f"left out: {said}{first}" if said else "nothing left out"


class PromptSet:
    """A `Prompts`: every prompt once, in the order of the files.

    prompts = PromptSet.read(settings.train, tokenizer, settings)
    batch = prompts.take([3, 0])
    """

    def __init__(self, batch: Batch, omitted: Omitted) -> None:
        self._batch = batch
        self.ids: Sequence[str] = batch.strings(PROMPT_ID)
        self.omitted = omitted

    @classmethod
    def read(cls, files: Iterable[Path], tokenizer: Tokenizer, settings: DataSettings) -> PromptSet:
        issues: list[Issue] = []
        first: dict[str, Prompt] = {}
        duplicates = conflicting = 0
        for prompt in _prompts(files, issues, settings.strict):
            known = first.setdefault(prompt.identity, prompt)
            duplicates += known is not prompt
            conflicting += known.answer != prompt.answer
        kept, texts, tokens = _tokenized(list(first.values()), tokenizer, settings)
        if not kept:
            raise ValueError(
                f"no prompt is left of {', '.join(str(file) for file in files)}: {len(issues)} rows are malformed"
                f"{f' (the first: {issues[0]})' if issues else ''}, {len(first)} are longer than "
                f"data.max_prompt_tokens = {settings.max_prompt_tokens}"
            )
        batch = Batch.of(
            {
                PROMPT_ID: [prompt.identity for prompt in kept],
                SOURCE: [prompt.source for prompt in kept],
                ANSWER: [prompt.answer for prompt in kept],
                EXTRA: [json.dumps(dict(prompt.extra), default=str) for prompt in kept],
                PROMPT_TEXT: texts,
                PROMPT_TOKENS: tokens,
            }
        )
        omitted = Omitted(
            issues=tuple(issues), duplicates=duplicates, conflicting=conflicting, too_long=len(first) - len(kept)
        )
        return cls(batch, omitted)

    def with_values(self, rewards: Mapping[str, Sequence[float]], solvable: bool) -> PromptSet:
        """The prompts with REFERENCE_REWARDS; an error names the first one that has none.

        What the value run cost and how much of it is left out travels with every batch that is taken.
        """
        lacking = [name for name in self.ids if name not in rewards]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(self.ids)} prompts, '{lacking[0]}' first, have no rewards in data.values; "
                "run `megatron-rl values` on these prompts"
            )
        known = self._batch.with_columns({REFERENCE_REWARDS: [list(rewards[name]) for name in self.ids]})
        kept_B = torch.tensor([not solvable or max(rewards[name]) > 0 for name in self.ids])
        if not bool(kept_B.any()):
            raise ValueError("the reference policy solved no prompt, so none is left; set data.solvable: false")
        unsolved = int((~kept_B).sum())
        told = {
            "values/rollouts": float(sum(len(rewards[name]) for name in self.ids)),
            "values/left_out_share": unsolved / len(self),
        }
        return PromptSet(known.where(kept_B).with_metrics(told), replace(self.omitted, unsolved=unsolved))

    @property
    def identity(self) -> str:
        """How many these are, and a digest of all that a run sees of them, in their order."""
        tokens, digest = self._batch.ragged(PROMPT_TOKENS), hashlib.sha256()
        for part in (tokens.length_B, tokens.values):
            digest.update(part.numpy().tobytes())
        for name in (PROMPT_ID, SOURCE, ANSWER, EXTRA):
            digest.update(json.dumps(self._batch.strings(name)).encode())
        return f"{len(self)} prompts, sha256 {digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self._batch.ragged(PROMPT_TOKENS).length_B.max())

    def take(self, index: Sequence[int]) -> Batch:
        return self._batch.take(torch.tensor(list(index), dtype=torch.int64))


def _prompts(files: Iterable[Path], issues: list[Issue], strict: bool) -> Iterator[Prompt]:
    for file in files:
        for record in read_records(file):
            try:
                yield read_prompt(record)
            except ValueError as error:
                issue = record.issue(str(error))
                if strict:
                    raise ValueError(f"{issue}; data.strict: false would leave the row out") from error
                issues.append(issue)


def _tokenized(
    prompts: list[Prompt], tokenizer: Tokenizer, settings: DataSettings
) -> tuple[list[Prompt], list[str], list[list[int]]]:
    """The prompts within the length, their texts and tokens."""
    arguments: Mapping[str, object] = settings.template
    template = Template(tokenizer=tokenizer, chat=settings.chat, system=settings.system, arguments=arguments)
    kept: list[Prompt] = []
    texts: list[str] = []
    tokens: list[list[int]] = []
    rendered = template.texts([prompt.prompt for prompt in prompts])
    for start in range(0, len(prompts), TOKENIZED_AT_ONCE):
        some, written = prompts[start : start + TOKENIZED_AT_ONCE], rendered[start : start + TOKENIZED_AT_ONCE]
        for prompt, text, ids in zip(some, written, _token_ids(template, some, written), strict=True):
            if len(ids) <= settings.max_prompt_tokens:
                kept.append(prompt)
                texts.append(text)
                tokens.append(ids)
    return kept, texts, tokens


def _token_ids(template: Template, prompts: list[Prompt], texts: list[str]) -> list[list[int]]:
    """Ids in order; plain text gets the tokenizer's special tokens, what a template rendered has them."""
    is_rendered = [template.chat == "always" or not isinstance(each.prompt, str) for each in prompts]
    is_rendered = [each and template.chat != "never" for each in is_rendered]
    found: dict[bool, Iterator[list[int]]] = {
        kind: iter(template.tokens([text for text, each in zip(texts, is_rendered, strict=True) if each == kind], kind))
        for kind in (True, False)
    }
    return [next(found[kind]) for kind in is_rendered]
