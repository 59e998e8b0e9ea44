"""Rollouts that failed: they leave every batch before anybody learns from it or counts them, and are told apart.

A failed rollout says nothing of the policy: it is no wrong answer. Its group lives on with those that came to an end;
a group of which none did is lost, and its prompt comes again when the sampler draws it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ERROR, GROUP, STATUS
from megatron_rl.batch.memory import Memory

FAILED: Final = "failed"
"""The slot of the rows that failed and wait to be told.

`{"rows": Batch | None, "groups": how many of theirs were lost, "rollouts": all failed ones of the run, "silent": groups
lost since a rollout came to an end}`; no memory at all before the first failure.
"""


class Told(NamedTuple):
    """What failed since it was told the last time, what is said of it, and the memory after that."""

    rows: Batch | None
    metrics: Mapping[str, float]
    memory: Memory


def lived(batch: Batch) -> Tensor:
    """`lived_B`: which rollouts came to an end; all of them, where nobody has said so yet."""
    statuses = batch.strings(STATUS) if STATUS in batch else []
    if "failed" not in statuses:
        return torch.ones(len(batch), dtype=torch.bool)
    return torch.tensor([status != "failed" for status in statuses], dtype=torch.bool)


def leave(batch: Batch, memory: Memory) -> tuple[Batch, Memory]:
    """The rollouts that came to an end, and memory with those that did not."""
    lived_B = lived(batch)
    if bool(lived_B.all()):
        is_over = len(batch) > 0 and memory is not None and _count(memory, "silent") > 0
        return batch, {**_state(memory), "silent": 0} if is_over else memory
    state, living, failed = _state(memory), batch.where(lived_B), batch.where(~lived_B)
    lost = len(_groups(failed) - _groups(living))
    earlier = state["rows"]
    return living, {
        "rows": earlier.followed_by(failed) if isinstance(earlier, Batch) else failed,
        "groups": _count(state, "groups") + lost,
        "rollouts": _count(state, "rollouts") + len(failed),
        "silent": 0 if len(living) else _count(state, "silent") + lost,
    }


def refuse_silence(memory: Memory, groups: int, step: int) -> None:
    """RuntimeError where nothing came of so many groups in a row: an engine that writes nothing ends the run."""
    if memory is None or (silent := _count(memory, "silent")) < groups:
        return
    rows = _state(memory)["rows"]
    why = f"; the last: {rows.strings(ERROR)[-1]}" if isinstance(rows, Batch) and ERROR in rows else ""
    raise RuntimeError(f"step {step}: none of the rollouts of {silent} groups in a row came to an end{why}")


def tell(memory: Memory) -> Told:
    """The rows that are still to be told; memory then has only their number."""
    if memory is None:
        return Told(None, {}, None)
    state = _state(memory)
    rows = state["rows"] if isinstance(state["rows"], Batch) else None
    metrics = {
        "failed/rollouts": float(len(rows)) if rows is not None else 0.0,
        "failed/groups": float(_count(state, "groups")),
        "failed/total": float(_count(state, "rollouts")),
    }
    return Told(rows, metrics, {**state, "rows": None, "groups": 0})


def joined(waiting: Memory, memory: Memory) -> Memory:
    """Memory of whoever went on from `tell`, with the rows that waited to be told before it did or have come since."""
    if waiting is None or memory is None:
        return waiting if memory is None else memory
    before, state = _state(waiting), _state(memory)
    first, then = before["rows"], state["rows"]
    both = first.followed_by(then) if isinstance(first, Batch) and isinstance(then, Batch) else then or first
    return {**state, "rows": both, "groups": _count(before, "groups") + _count(state, "groups")}


def _groups(batch: Batch) -> set[int]:
    return set(batch.numbers(GROUP).tolist()) if GROUP in batch else set()


def _state(memory: Memory) -> dict[str, Memory]:
    if memory is None:
        return {"rows": None, "groups": 0, "rollouts": 0, "silent": 0}
    if not isinstance(memory, Mapping):
        raise TypeError(f"what is remembered of failed rollouts is a mapping, got {type(memory).__name__}")
    return dict(memory)


def _count(memory: Memory, name: str) -> int:
    value = _state(memory)[name]
    if not isinstance(value, int):
        raise TypeError(f"failed rollouts are counted in whole numbers, got {value!r} of '{name}'")
    return value
