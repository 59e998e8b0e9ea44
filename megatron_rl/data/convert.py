"""A published data set becomes a prompt file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from megatron_rl.data.prompt_file import Prompt, write_prompts
from megatron_rl.data.published import PUBLISHED
from megatron_rl.data.records import Issue, read_records


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What came of a conversion."""

    written: int
    duplicates: int
    conflicting: int
    """Duplicates whose reference answer differs from the first one's, which stays."""
    issues: tuple[Issue, ...]

    def __str__(self) -> str:
        another = f" ({self.conflicting} with another answer)" if self.conflicting else ""
        left_out = f"{self.duplicates} duplicates{another} and {len(self.issues)} malformed left out"
        return "\n".join([f"{self.written} prompts written, {left_out}", *(str(issue) for issue in self.issues)])


def convert(name: str, source: Path, target: Path, strict: bool = False) -> Converted:
    """Writes the prompt file `target` from a published file, or a folder of them.

    A malformed row is reported with file, row and reason and left out; `strict` makes the first one an error, and then
    nothing is written.
    """
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"there is no converter '{name}'{hint} Known: {', '.join(sorted(PUBLISHED))}")
    issues: list[Issue] = []
    first: dict[str, Prompt] = {}
    rows = conflicting = 0
    for prompt in _converted(name, source, issues, strict):
        rows += 1
        conflicting += first.setdefault(prompt.identity, prompt).answer != prompt.answer
    if not first:
        raise ValueError(f"{source} gave no prompt of '{name}'{f'; the first row: {issues[0]}' if issues else ''}")
    written = write_prompts(target, first.values())
    return Converted(written=written, duplicates=rows - written, conflicting=conflicting, issues=tuple(issues))


def _converted(name: str, source: Path, issues: list[Issue], strict: bool) -> Iterator[Prompt]:
    for record in read_records(source):
        try:
            yield PUBLISHED[name].prompt(record)
        except ValueError as error:
            issue = record.issue(str(error))
            if strict:
                raise ValueError(str(issue)) from error
            issues.append(issue)
