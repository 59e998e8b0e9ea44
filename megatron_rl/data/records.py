"""Rows of parquet, JSON and JSON-lines files, one at a time; a row that cannot be read is an issue, not an end.

JSON may begin with a byte-order mark and have the line ends of any system. Bytes that are not the file's encoding make
a row unreadable; they are never replaced by others.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_rl.spec.files import PROMPT_FILES

Fields = dict[str, Any]

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""How the names of files end that hold rows for somebody else to unpack."""


@dataclass(frozen=True, kw_only=True)
class Issue:
    """A row that was left out, and why: 'train.jsonl row 17: no boxed answer in 'solution''."""

    file: str
    row: int
    """Counted from 1, as editors count lines."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file} row {self.row}: {self.reason}"


class Record(NamedTuple):
    """One row as its file holds it, with its index from 0; or the reason it could not be read."""

    file: str
    row: int
    fields: Fields
    unreadable: str = ""

    def issue(self, reason: str) -> Issue:
        return Issue(file=self.file, row=self.row + 1, reason=reason)


def read_records(source: Path) -> Iterator[Record]:
    """Every row of a file, or of the data files under a folder, in the order of their names."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix in _READERS and path.is_file())
        if not any(path.suffix in PROMPT_FILES for path in files):
            raise ValueError(f"{source} holds no {', '.join(PROMPT_FILES)} file")
        for path in files:
            yield from _READERS[path.suffix](path)
    elif source.suffix not in _READERS:
        raise ValueError(f"{source} is no data file; expected {', '.join(PROMPT_FILES)} or a folder of them")
    elif not source.exists():
        raise FileNotFoundError(f"there is no data file {source}")
    elif not source.is_file():
        raise ValueError(f"{source} is a pipe or a device, and data files are read more than once; give a plain file")
    else:
        yield from _READERS[source.suffix](source)


def _parquet(path: Path) -> Iterator[Record]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields, unreadable in _rows(batch):
                    yield Record(str(path), row, fields, unreadable)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        yield Record(str(path), row, {}, f"cannot be read as Parquet, nor can what follows ({error})")


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Fields, str]]:
    """Fields, or why there are none."""
    try:
        yield from ((fields, "") for fields in batch.to_pylist())
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield {}, f"is no text ({error})"
            return
        for row in range(len(batch)):
            yield from _rows(batch.slice(row, 1))


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for row, line in enumerate(file):
            if line.strip():
                yield _record(path, row, line)


def _json(path: Path) -> Iterator[Record]:
    """A list of rows, one row, or lines, since many published .json files are that."""
    whole = path.read_bytes()
    try:
        found = json.loads(whole)
    except (ValueError, RecursionError) as error:
        if whole.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield Record(str(path), 0, {}, f"is no JSON, nor can the rows of this list be told apart ({error})")
        else:
            yield from _json_lines(path)
        return
    for row, fields in enumerate(found if isinstance(found, list) else [found]):
        yield _checked(path, row, fields)


def _packed(path: Path) -> Iterator[Record]:
    yield Record(str(path), 0, {}, "is packed, and its rows are not read; unpack the file first")


def _record(path: Path, row: int, line: bytes) -> Record:
    try:
        return _checked(path, row, json.loads(line))
    except (ValueError, RecursionError) as error:
        return Record(str(path), row, {}, f"is no JSON ({error})")


def _checked(path: Path, row: int, fields: object) -> Record:
    if isinstance(fields, dict):
        return Record(str(path), row, fields)
    return Record(str(path), row, {}, f"is {type(fields).__name__}, not a mapping of fields")


_READERS = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".json": _json,
    **dict.fromkeys(PACKED, _packed),
}
