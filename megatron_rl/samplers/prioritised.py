"""PSPO's sampler: prompts in proportion to how much they have been teaching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import DRAW_ODDS, PROMPT_ID, REWARD
from megatron_rl.batch.memory import Memory
from megatron_rl.drawing import requests
from megatron_rl.ops.baselines import grpo
from megatron_rl.ops.priorities import draw, floored, priorities, probabilities
from megatron_rl.pipeline import DRAWN
from megatron_rl.ports import Context

RAW_EPS = 1e-4
"""PSPO scales the advantages that priorities are made of with this; they are never the smoothed ones."""


@dataclass(frozen=True, kw_only=True)
class Prioritised:
    """Draws `prompts` distinct prompts with probability proportional to priority^exponent, from live priorities (PPS).

    Memory: `{"priority": {prompt id: priority}, "drawn": groups so far, "mean": {prompt id: reward}}`; a prompt never
    drawn has priority 1. One rollout has no group to be measured by: its priority is its distance from the mean of the
    prompt's rewards before, of which the last is half, and where there are none the prompt keeps the priority it has.
    The stage `importance_weight` undoes the tilt in the loss, as far as it is asked to.
    """

    slot: ClassVar[str] = "prioritised"
    writes = (*DRAWN, DRAW_ODDS)

    prompts: Annotated[int, Ge(1)] = 8
    """Prompts one update learns from."""
    samples: Annotated[int, Ge(1)] = 6
    """Rollouts of each prompt."""
    wave: Annotated[int, Ge(1)] | None = None
    """Prompts drawn a trip to the engine, where a filter drops some of them; none means `prompts`."""
    max_age: Annotated[int, Ge(0)] | None = None
    """Groups left over from a wave are dropped when more updates old than this: 0 is DAPO's, null keeps all."""
    exponent: Annotated[float, Ge(0)] = 0.6
    """How sharply draws follow priorities; 0 is uniform sampling."""
    scheme: Literal["average", "max", "last"] = "average"
    """How a group's advantages become its prompt's priority."""
    eps: Annotated[float, Gt(0)] = 1e-6
    """Added to every priority."""
    floor: Annotated[float, Ge(0)] = 0.05
    """Least priority, as a share of the mean one, so that a prompt once dead is visited again."""

    def draw(self, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        priority, drawn, mean = _state(memory)
        ids = context.prompts.ids
        priority_D = torch.tensor([priority.get(name, 1.0) for name in ids], dtype=torch.float64)
        floored_D = floored(priority_D, self.floor)
        probability_D = probabilities(floored_D, self.exponent)
        uniform_D = torch.from_numpy(context.lasting_rng("prioritised", drawn).random(len(ids)))
        places = draw(probability_D, uniform_D, self.wave or self.prompts)
        picks = [(drawn // len(ids), place) for place in places.tolist()]
        odds_N = probability_D[places] * len(ids)
        asked = requests(context, picks, self.samples, first_group=drawn)
        metrics = {
            "prioritised/effective_prompts": float(1 / probability_D.square().sum()),
            "prioritised/at_floor_share": float((floored_D > priority_D).double().mean()),
        }
        columns = asked.with_columns(draw_odds=odds_N.repeat_interleave(self.samples)).with_metrics(metrics)
        return columns, {"priority": dict(priority), "drawn": drawn + len(picks), "mean": dict(mean)}

    def observe(self, batch: Batch, memory: Memory, context: Context) -> Memory:
        """Priorities from the raw advantages of the wave, groups that a filter drops included."""
        priority, drawn, mean = _state(memory)
        prompt_B, reward_B = batch.index(PROMPT_ID), batch.numbers(REWARD)
        raw_B = grpo(reward_B, prompt_B, eps=RAW_EPS)
        names = batch.strings(PROMPT_ID)
        groups = zip(dict.fromkeys(names), priorities(raw_B, prompt_B, self.scheme, self.eps).tolist(), strict=True)
        rollouts = Counter(names)
        seen = {name: size for name, size in groups if rollouts[name] > 1}
        alone = {name: float(r) for name, r in zip(names, reward_B, strict=True) if rollouts[name] == 1}
        seen |= {name: abs(r - mean[name]) + self.eps for name, r in alone.items() if name in mean}
        told = {name: (mean.get(name, r) + r) / 2 for name, r in alone.items()}
        return {"priority": {**priority, **seen}, "drawn": drawn, "mean": {**mean, **told}}


def _state(memory: Memory) -> tuple[Mapping[str, float], int, Mapping[str, float]]:
    if memory is None:
        return {}, 0, {}
    if not (isinstance(memory, Mapping) and isinstance(drawn := memory.get("drawn"), int)):
        raise TypeError(f"prioritised's memory holds 'priority', 'drawn' and 'mean', got {memory!r}")
    return _numbers(memory.get("priority")), drawn, _numbers(memory.get("mean"))


def _numbers(memory: Memory) -> dict[str, float]:
    """By prompt; none where there were none yet."""
    if not isinstance(memory, Mapping):
        return {}
    return {name: value for name, value in memory.items() if isinstance(value, float)}
