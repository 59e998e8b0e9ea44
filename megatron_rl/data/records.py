"""Rows of parquet, JSON and JSON-lines files, one at a time; a row that cannot be read is an issue, not an end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from megatron_rl.spec.files import PROMPT_FILES

Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Issue:
    """A row that was left out, and why: 'train.jsonl row 17: no boxed answer in 'solution''."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} row {self.row}: {self.reason}"


class Record(NamedTuple):
    """One row as its file holds it, rows counted from 0; or the reason it could not be read."""

    file: str
    row: int
    fields: Fields
    unreadable: str = ""

    def issue(self, reason: str) -> Issue:
        return Issue(file=self.file, row=self.row, reason=reason)


def read_records(source: Path) -> Iterator[Record]:
    """Every row of a file, or of the data files under a folder, in the order of their names."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix in PROMPT_FILES)
        if not files:
            raise ValueError(f"{source} holds no {', '.join(PROMPT_FILES)} file")
        for path in files:
            yield from _READERS[path.suffix](path)
    elif source.suffix not in _READERS:
        raise ValueError(f"{source} is no data file; expected {', '.join(PROMPT_FILES)} or a folder of them")
    elif not source.exists():
        raise FileNotFoundError(f"there is no data file {source}")
    else:
        yield from _READERS[source.suffix](source)


def _parquet(path: Path) -> Iterator[Record]:
    row = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                yield Record(str(path), row, fields)
                row += 1


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for row, line in enumerate(file):
            if line.strip():
                yield _record(path, row, line)


def _json(path: Path) -> Iterator[Record]:
    """A list of rows, or one row."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError:
        yield from _json_lines(path)  # many published .json files are lines
        return
    rows = whole if isinstance(whole, list) else [whole]
    for row, fields in enumerate(rows):
        yield _checked(path, row, fields)


def _record(path: Path, row: int, line: str) -> Record:
    try:
        return _checked(path, row, json.loads(line))
    except json.JSONDecodeError as error:
        return Record(str(path), row, {}, f"is no JSON ({error})")


def _checked(path: Path, row: int, fields: object) -> Record:
    if isinstance(fields, dict):
        return Record(str(path), row, fields)
    return Record(str(path), row, {}, f"is {type(fields).__name__}, not a mapping of fields")


_READERS = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json}
