"""What samplers share: the order of the epochs, and prompts turned into requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import EPOCH, GROUP, PHASE, PROMPT_ID, SEED, SLOT
from megatron_rl.ports import Context


def epoch_order(context: Context, size: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """The prompts' places in one pass over the data; a function of seed and epoch alone."""
    return _shuffled(context.seed, size, epoch) if shuffle else np.arange(size)


@lru_cache(maxsize=2)
def _shuffled(seed: int, size: int, epoch: int) -> np.ndarray:
    """Remembered, since every wave of an epoch goes on in the same order."""
    order = Context(step=0, version=0, seed=seed).lasting_rng("epoch", epoch).permutation(size)
    order.flags.writeable = False
    return order


def stream(context: Context, size: int, position: int, shuffle: bool = True) -> Iterator[tuple[int, int]]:
    """Endless (epoch, place) from a position in the concatenated epochs."""
    while True:
        epoch, start = divmod(position, size)
        for place in epoch_order(context, size, epoch, shuffle)[start:]:
            yield epoch, int(place)
            position += 1


def requests(
    context: Context, picks: Sequence[tuple[int, int]], samples: int, first_group: int, phase: str = "train"
) -> Batch:
    """One group of `samples` requests for each (epoch, place); groups are numbered on from `first_group`.

    A rollout's seed depends on the run's seed, its group and its slot, so it is the same however waves are cut.
    """
    slots = np.tile(np.arange(samples), len(picks))
    groups = np.repeat(np.arange(first_group, first_group + len(picks)), samples)
    prompts = context.prompts.take([place for _, place in picks for _ in range(samples)])
    return prompts.with_columns(
        {
            GROUP: groups,
            SLOT: slots,
            EPOCH: np.repeat([epoch for epoch, _ in picks], samples),
            PHASE: [phase] * len(slots),
            SEED: rollout_seeds(context, groups, slots),
        }
    )


Key = tuple[str, int, int]
"""Prompt, slot, and which of the prompt's groups in the wave."""


def rollout_keys(batch: Batch) -> list[Key]:
    """What tells a prompt's rollouts apart from epoch to epoch; no two rows of a wave share one."""
    groups_of: dict[str, dict[int, int]] = {}
    identity = zip(batch.strings(PROMPT_ID), batch.numbers(SLOT).tolist(), batch.numbers(GROUP).tolist(), strict=True)
    numbered = ((prompt, slot, group, groups_of.setdefault(prompt, {})) for prompt, slot, group in identity)
    return [(prompt, slot, groups.setdefault(group, len(groups))) for prompt, slot, group, groups in numbered]


def rollout_seeds(context: Context, group_B: np.ndarray, slot_B: np.ndarray) -> np.ndarray:
    """63-bit seeds, one per (group, slot): a splitmix64 finaliser over both and the run's key."""
    with np.errstate(over="ignore"):
        bits = np.uint64(context.lasting_rng("rollout", 0).integers(1 << 63)) + group_B.astype(np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = _finalise(_finalise(bits) + slot_B.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
    return np.asarray(mixed >> np.uint64(1), dtype=np.int64)


def _finalise(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))
