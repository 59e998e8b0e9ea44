"""Whole groups in, training batches out. What waits here is memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import KEPT, VERSION
from megatron_rl.batch.memory import Memory


@dataclass(frozen=True, kw_only=True)
class GroupBuffer:
    """Hands out batches of `prompts` whole groups, first in first out.

    Memory is `{"waiting": Batch | None, "pushed": …, "yielded": …, "filtered": …, "stale": …}`; counts are in rollouts,
    and at every moment pushed = yielded + waiting + filtered + stale.
    """

    prompts: int
    """Groups one update learns from."""
    max_age: int | None = None
    """Groups whose newest rollout is by more than this many versions older than the weights that write now are dropped.

    None means no limit.
    """

    def push(self, memory: Memory, wave: Batch) -> Memory:
        """Memory with the wave's kept groups waiting at the end."""
        state = _state(memory)
        kept = wave.where(wave.numbers(KEPT)).without(KEPT)
        counted = state | {
            "pushed": _count(state["pushed"]) + len(wave),
            "filtered": _count(state["filtered"]) + len(wave) - len(kept),
        }
        waiting = state["waiting"]
        if not len(kept):
            return counted
        return counted | {"waiting": Batch.concat([waiting, kept]) if isinstance(waiting, Batch) else kept}

    def take(self, memory: Memory, version: int, writing: int | None = None) -> tuple[Batch | None, Memory]:
        """The next batch, or None while fewer than `prompts` groups wait.

        `version` learns from it, and `writing` writes now: an older one where rollouts are written ahead.
        """
        state = self._without_stale(_state(memory), version if writing is None else writing)
        waiting = state["waiting"]
        if not isinstance(waiting, Batch):
            return None, state
        group_B = waiting.group_index()
        if int(group_B.max()) + 1 < self.prompts:
            return None, state
        taken_B = group_B < self.prompts
        rest = waiting.where(~taken_B)
        batch = waiting.where(taken_B)
        # Since the run began: a step may take several waves, or none, so counts of one wave would not add up.
        totals = {f"buffer/{name}": float(_count(state[name])) for name in ("pushed", "filtered", "stale")}
        batch = batch.with_metrics(_metrics(batch, rest, version) | totals)
        return batch, state | {"waiting": rest if len(rest) else None, "yielded": _count(state["yielded"]) + len(batch)}

    def _without_stale(self, state: dict[str, Memory], version: int) -> dict[str, Memory]:
        waiting = state["waiting"]
        if self.max_age is None or not isinstance(waiting, Batch):
            return state
        group_B = waiting.group_index()
        newest_G = torch.full((int(group_B.max()) + 1,), -1).scatter_reduce(
            0, group_B, waiting.numbers(VERSION), "amax"
        )
        fresh_B = (version - newest_G <= self.max_age)[group_B]
        stale = int((~fresh_B).sum())
        fresh = waiting.where(fresh_B)
        return state | {"waiting": fresh if len(fresh) else None, "stale": _count(state["stale"]) + stale}


def _metrics(batch: Batch, rest: Batch, version: int) -> dict[str, float]:
    """How long rollouts have waited, in policy versions, and how many wait on."""
    metrics = {"buffer/waiting": float(len(rest)), "buffer/trained": float(len(batch))}
    if VERSION in batch:
        age_B = (version - batch.numbers(VERSION)).double()
        metrics |= {"buffer/age_mean": float(age_B.mean()), "buffer/age_max": float(age_B.max())}
    return metrics


def waiting_rollouts(memory: Memory) -> int:
    waiting = _state(memory)["waiting"]
    return len(waiting) if isinstance(waiting, Batch) else 0


def _state(memory: Memory) -> dict[str, Memory]:
    if memory is None:
        return {"waiting": None, "pushed": 0, "yielded": 0, "filtered": 0, "stale": 0}
    if not isinstance(memory, dict):
        raise TypeError(f"the buffer's memory is a mapping, got {type(memory).__name__}")
    return memory


def _count(value: Memory) -> int:
    if not isinstance(value, int):
        raise TypeError(f"the buffer counts rollouts in whole numbers, got {value!r}")
    return value
