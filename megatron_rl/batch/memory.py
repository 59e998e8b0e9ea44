"""Memory: what outlives a step. Plain values and batches, written as JSON and Parquet and read back equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, Union

from megatron_rl.batch.batch import Batch

Memory: TypeAlias = Union[bool, int, float, str, "list[Memory]", "Mapping[str, Memory]", Batch, None]
_BATCH_MARK = "$batch"


def write_memory(memory: Memory, folder: Path) -> None:
    """`memory.json` holds the tree; each batch in it is a Parquet file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    batches: list[Batch] = []
    tree = _lift_batches(memory, batches)
    for number, batch in enumerate(batches):
        batch.write_parquet(folder / f"batch_{number:04d}.parquet")
    (folder / "memory.json").write_text(json.dumps(tree))


def copied(memory: Memory) -> Memory:
    """The same, whatever becomes of its lists and mappings; batches never change."""
    if isinstance(memory, Mapping):
        return {key: copied(value) for key, value in memory.items()}
    return [copied(value) for value in memory] if isinstance(memory, list) else memory


def read_memory(folder: Path) -> Memory:
    return _lower_batches(json.loads((folder / "memory.json").read_text()), folder)


def _lift_batches(memory: Memory, batches: list[Batch]) -> object:
    if isinstance(memory, Batch):
        batches.append(memory)
        return {_BATCH_MARK: len(batches) - 1}
    if isinstance(memory, Mapping):
        if not all(isinstance(key, str) and key != _BATCH_MARK for key in memory):
            raise TypeError(f"memory keys must be text other than '{_BATCH_MARK}', got {list(memory)[:5]!r}")
        return {key: _lift_batches(value, batches) for key, value in memory.items()}
    if isinstance(memory, list):
        return [_lift_batches(value, batches) for value in memory]
    if memory is None or isinstance(memory, (bool, int, float, str)):
        return memory
    raise TypeError(f"memory holds plain values, lists, mappings and batches, got {type(memory).__name__}: {memory!r}")


def _lower_batches(tree: object, folder: Path) -> Memory:
    if isinstance(tree, dict):
        if set(tree) == {_BATCH_MARK}:
            return Batch.read_parquet(folder / f"batch_{tree[_BATCH_MARK]:04d}.parquet")
        return {key: _lower_batches(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_lower_batches(value, folder) for value in tree]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"unexpected value in memory.json: {tree!r}")
